# EoMT, DINOv2 ViT-L, Cityscapes with 1024×1024 crops, all parameters trained: a published model.
_base_ = [
    '_base_/eomt_vit-l.py',
    '_base_/cityscapes_1024.py',
    '_base_/schedule_cityscapes_107e.py',
    '_base_/runtime.py',
]
crop_size = (1024, 1024)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size),
    test_cfg=dict(crop_size=crop_size, stride=crop_size),
)
