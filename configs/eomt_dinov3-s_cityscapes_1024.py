# EoMT, DINOv3 ViT-S, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = 'eomt_cityscapes_1024.py'
parts = dict(
    arch='dinov3_small',
    num_joint_blocks=3,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vits16-pretrain-lvd1689m'),
)
model = dict(backbone=parts, decode_head=parts)
