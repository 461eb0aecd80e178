# EoMT, DINOv2 ViT-S, ADE20K with 512×512 crops, all parameters trained.
_base_ = ['eomt_ade20k_512.py', '_base_/dinov2-s.py']
model = dict(vit=_base_.vit)
