# DINOv2 ViT-S with registers, for backbone and decode_head: model = dict(backbone=_base_.parts, decode_head=_base_.parts).
parts = dict(
    arch='small',
    num_joint_blocks=3,
    init_cfg=dict(
        type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth'
    ),
)
