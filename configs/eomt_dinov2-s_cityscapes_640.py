# EoMT, DINOv2 ViT-S, Cityscapes with 640×640 crops, all parameters trained.
_base_ = ['eomt_cityscapes.py', '_base_/dinov2-s.py']
model = dict(vit=_base_.vit)
