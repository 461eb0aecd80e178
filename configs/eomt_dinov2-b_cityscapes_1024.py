# EoMT, DINOv2 ViT-B, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = ['eomt_cityscapes_1024.py', '_base_/dinov2-b.py']
model = dict(vit=_base_.vit)
