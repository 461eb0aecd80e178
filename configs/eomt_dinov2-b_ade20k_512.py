# EoMT, DINOv2 ViT-B, ADE20K with 512×512 crops, all parameters trained.
_base_ = ['eomt_ade20k_512.py', '_base_/dinov2-b.py']
model = dict(vit=_base_.vit)
