# DINOv2 ViT-B with registers, for backbone and decode_head: model = dict(backbone=_base_.parts, decode_head=_base_.parts).
parts = dict(
    arch='base',
    num_joint_blocks=3,
    init_cfg=dict(
        type='Pretrained', checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth'
    ),
)
