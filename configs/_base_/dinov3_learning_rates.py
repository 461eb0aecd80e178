# Learning rates of the authors' DINOv3 models: joint blocks at the full rate, longer warm-ups.
dinov3 = dict(
    optim_wrapper=dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_joint_blocks=False)),
    param_scheduler=[dict(type='TwoWarmupsPolyLR', warmup_steps=(2000, 3000), power=0.9, by_epoch=False)],
)
