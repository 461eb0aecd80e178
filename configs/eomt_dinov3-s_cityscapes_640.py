# EoMT, DINOv3 ViT-S, Cityscapes with 640×640 crops, all parameters trained.
_base_ = ['eomt_cityscapes.py', '_base_/dinov3-s.py', '_base_/dinov3_rates.py']
model = dict(backbone=_base_.parts, decode_head=_base_.parts)
optim_wrapper = _base_.rates
param_scheduler = _base_.warmups
