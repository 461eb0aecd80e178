# EoMT, DINOv2 ViT-S, ADE20K with 512×512 crops, all parameters trained.
_base_ = 'eomt_ade20k_512.py'
parts = dict(
    arch='small',
    num_joint_blocks=3,
    init_cfg=dict(
        type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth'
    ),
)
model = dict(backbone=parts, decode_head=parts)
