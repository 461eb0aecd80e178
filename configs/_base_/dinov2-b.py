# DINOv2 ViT-B with registers: model = dict(vit=_base_.vit).
vit = dict(
    arch='base',
    num_joint_blocks=3,
    pretrained='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth',
)
