# As cityscapes_640.py with 1024 in place of 640, so that images are evaluated at their full size: the published pipeline.
_base_ = 'cityscapes_640.py'
crop_size = (1024, 1024)
sizes = dict(size=crop_size, crop_size=crop_size)
train_pipeline = [{key: sizes.get(key, value) for key, value in step.items()} for step in _base_.train_pipeline]
test_pipeline = [{key: sizes.get(key, value) for key, value in step.items()} for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_sizes = [dict(type='EoMTResize', size=size) for size in (768, 1024, 1280)]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *_base_.tta_steps])]
