# 50 epochs of Cityscapes' 2,975 images in batches of 4: 744 iterations an epoch.
max_iters = 37200
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=500, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=500, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=3720)
auto_scale_lr = dict(enable=False, base_batch_size=4)
