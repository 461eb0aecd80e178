# EoMT, DINOv2 ViT-S, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = ['eomt_cityscapes_1024.py', '_base_/dinov2-s.py']
model = dict(vit=_base_.vit)
