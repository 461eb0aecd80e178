# EoMT, DINOv2 ViT-B, Cityscapes with 1024×1024 crops, all parameters trained.
_base_ = 'eomt_cityscapes_1024.py'
parts = dict(
    arch='base',
    num_joint_blocks=3,
    init_cfg=dict(
        type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth'
    ),
)
model = dict(backbone=parts, decode_head=parts)
