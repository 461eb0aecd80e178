# EoMT, DINOv3 ViT-B, ADE20K with 512×512 crops, all parameters trained.
_base_ = ['eomt_ade20k_512.py', '_base_/dinov3-b.py']
model = dict(vit=_base_.vit)
optim_wrapper = _base_.dinov3.optim_wrapper
param_scheduler = _base_.dinov3.param_scheduler
