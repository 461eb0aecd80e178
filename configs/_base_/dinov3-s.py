# DINOv3 ViT-S, for backbone and decode_head: model = dict(backbone=_base_.parts, decode_head=_base_.parts).
parts = dict(
    arch='dinov3_small',
    num_joint_blocks=3,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vits16-pretrain-lvd1689m'),
)
