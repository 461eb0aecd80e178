# EoMT, DINOv3 ViT-L, ADE20K with 512×512 crops, all parameters trained: a published model.
_base_ = 'eomt_ade20k_512.py'
parts = dict(
    arch='dinov3_large',
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vitl16-pretrain-lvd1689m'),
)
model = dict(backbone=parts, decode_head=parts)
