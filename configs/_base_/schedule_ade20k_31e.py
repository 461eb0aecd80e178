# 31 epochs of ADE20K's 20,210 images in batches of 4: 5,053 iterations an epoch.
_base_ = 'schedule_50e.py'
max_iters = 156643
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=500, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=500, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=15000)
