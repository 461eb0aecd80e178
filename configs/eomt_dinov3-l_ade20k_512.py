# EoMT, DINOv3 ViT-L, ADE20K with 512×512 crops, all parameters trained: a published model.
_base_ = ['eomt_ade20k_512.py', '_base_/dinov3-l.py']
model = dict(vit=_base_.vit)
optim_wrapper = _base_.dinov3.optim_wrapper
param_scheduler = _base_.dinov3.param_scheduler
