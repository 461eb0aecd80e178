# EoMT, DINOv2 ViT-L, Cityscapes with 1024×1024 crops, all parameters trained: a published model.
_base_ = ['_base_/eomt_vit-l.py', '_base_/cityscapes_1024.py', '_base_/schedule_cityscapes_107e.py', '_base_/runtime.py']
model = dict(vit=dict(img_size=_base_.crop_size))
