# ADE20K at data/ade/ADEChallengeData2016, with 512×512 crops: the published pipeline.
_base_ = 'data_640.py'
data_root = 'data/ade/ADEChallengeData2016'
crop_size = (512, 512)
sizes = dict(size=crop_size, crop_size=crop_size)
labels = dict(type='LoadAnnotations', reduce_zero_label=True)
train_pipeline = [
    labels if step.type == 'LoadAnnotations' else {key: sizes.get(key, value) for key, value in step.items()}
    for step in _base_.train_pipeline
]
test_pipeline = [
    labels if step.type == 'LoadAnnotations' else {key: sizes.get(key, value) for key, value in step.items()}
    for step in _base_.test_pipeline
]
ade20k = dict(type='ADE20KDataset', data_root=data_root)
train_prefix = dict(img_path='images/training', seg_map_path='annotations/training')
val_prefix = dict(img_path='images/validation', seg_map_path='annotations/validation')
train_dataloader = dict(dataset=dict(data_prefix=train_prefix, pipeline=train_pipeline, **ade20k))
val_dataloader = dict(dataset=dict(data_prefix=val_prefix, pipeline=test_pipeline, **ade20k))
test_dataloader = val_dataloader
tta_sizes = [dict(type='EoMTResize', size=size) for size in (384, 512, 640)]
tta_steps = [_base_.tta_steps[0], [labels], _base_.tta_steps[2]]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *tta_steps])]
