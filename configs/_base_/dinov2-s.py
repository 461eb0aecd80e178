# DINOv2 ViT-S with registers: model = dict(vit=_base_.vit).
vit = dict(
    arch='small',
    num_joint_blocks=3,
    pretrained='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth',
)
