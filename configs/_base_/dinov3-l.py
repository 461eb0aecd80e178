# DINOv3 ViT-L, for backbone and decode_head: model = dict(backbone=_base_.parts, decode_head=_base_.parts).
parts = dict(
    arch='dinov3_large',
    num_joint_blocks=4,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vitl16-pretrain-lvd1689m'),
)
