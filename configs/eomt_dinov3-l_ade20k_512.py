# EoMT, DINOv3 ViT-L, ADE20K with 512×512 crops, all parameters trained: a published model.
_base_ = ['eomt_ade20k_512.py', '_base_/dinov3-l.py', '_base_/dinov3_rates.py']
model = dict(backbone=_base_.parts, decode_head=_base_.parts)
optim_wrapper = _base_.rates
param_scheduler = _base_.warmups
