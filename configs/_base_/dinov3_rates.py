# Rates of the authors' DINOv3 models: joint blocks at the full rate, longer warm-ups.
rates = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(decay_joint_blocks=False))
warmups = [dict(type='TwoWarmupsPolyLR', warmup_steps=(2000, 3000), power=0.9, by_epoch=False)]
