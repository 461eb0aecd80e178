# The published recipe: 107 epochs of Cityscapes' 2,975 images, effective batch size 16 (4 × 4); 186 steps per epoch.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='EoMTOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay=0.8),
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    accumulative_counts=4,
)
param_scheduler = [dict(type='TwoWarmupsPolyLR', warmup_steps=(500, 1000), power=0.9, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=79608, val_interval=7440)
auto_scale_lr = dict(enable=False, base_batch_size=4)  # in all processes, before accumulation
