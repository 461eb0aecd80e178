# The anomaly demo's second training: RbA on the base model, with patches of other training images as outliers.
_base_ = 'eomt_anomaly_demo.py'
max_iters = 300
load_from = 'work_dirs/eomt_anomaly_demo/iter_600.pth'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PasteOutliers', source=dict(type='TrainingPatches'), prob=0.5, size=(0.1, 0.5)),
    dict(type='RandomCrop', crop_size=_base_.crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
model = dict(decode_head=dict(loss_outlier=dict(type='OutlierLoss')))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
# no MaskAnnealingHook: the base model's masks are annealed, and stay off
custom_hooks = [
    dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head.class_head', 'decode_head.mask_head']),
]
