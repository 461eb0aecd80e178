# RbA on one's own LoRA run of eomt_lora_cityscapes.py, at 640×640: its adapters, class head and mask head go on training.
_base_ = 'eomt_lora_rba_cityscapes_1024.py'
load_from = 'work_dirs/eomt_lora_cityscapes/iter_79608.pth'
crop_size = (640, 640)
sizes = dict(size=crop_size, crop_size=crop_size)
train_pipeline = [
    *_base_.train_pipeline[:3],  # up to the outliers
    *({key: sizes.get(key, value) for key, value in step.items()} for step in _base_.train_pipeline[3:]),
]
test_pipeline = [{key: sizes.get(key, value) for key, value in step.items()} for step in _base_.test_pipeline]
model = dict(vit=dict(img_size=crop_size))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
tta_sizes = [dict(type='EoMTResize', size=size) for size in (480, 640, 800)]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *_base_.tta_steps])]
