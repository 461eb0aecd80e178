# DINOv3 ViT-B, for backbone and decode_head: model = dict(backbone=_base_.parts, decode_head=_base_.parts).
parts = dict(
    arch='dinov3_base',
    num_joint_blocks=3,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vitb16-pretrain-lvd1689m'),
)
