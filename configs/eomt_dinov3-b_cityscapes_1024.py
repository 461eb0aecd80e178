# EoMT, DINOv3 ViT-B, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = 'eomt_cityscapes_1024.py'
parts = dict(
    arch='dinov3_base',
    num_joint_blocks=3,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vitb16-pretrain-lvd1689m'),
)
model = dict(backbone=parts, decode_head=parts)
