# EoMT, DINOv2 ViT-L, ADE20K with 512×512 crops, all parameters trained: a published model.
_base_ = [
    '_base_/eomt_vit-l.py',
    '_base_/ade20k_512.py',
    '_base_/schedule_ade20k_31e.py',
    '_base_/runtime.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size),
    decode_head=dict(num_classes=150),
    test_cfg=dict(crop_size=crop_size, stride=crop_size),
)
default_hooks = dict(checkpoint=dict(interval=15168))
