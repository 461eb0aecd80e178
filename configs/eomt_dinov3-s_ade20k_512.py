# EoMT, DINOv3 ViT-S, ADE20K with 512×512 crops, all parameters trained.
_base_ = 'eomt_ade20k_512.py'
parts = dict(
    arch='dinov3_small',
    num_joint_blocks=3,
    init_cfg=dict(type='Pretrained', checkpoint='hf://facebook/dinov3-vits16-pretrain-lvd1689m'),
)
model = dict(backbone=parts, decode_head=parts)
# rates of the authors' DINOv3 models: joint blocks at the full rate, longer warm-ups
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_joint_blocks=False))
param_scheduler = [dict(type='TwoWarmupsPolyLR', warmup_steps=(2000, 3000), power=0.9, by_epoch=False)]
