# EoMT, DINOv3 ViT-L, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = ['eomt_cityscapes_1024.py', '_base_/dinov3-l.py']
model = dict(vit=_base_.vit)
optim_wrapper = _base_.dinov3.optim_wrapper
param_scheduler = _base_.dinov3.param_scheduler
