# The anomaly demo's second training: RbA on the base model, with LoRA. Outliers are patches of other training images.
_base_ = 'eomt_anomaly_demo.py'
max_iters = 300
load_from = 'work_dirs/eomt_anomaly_demo/iter_600.pth'
# the run is short, and so nearly all images get outliers: RbA as published has a tenth of them in 2,000 steps
paste_outliers = dict(type='PasteOutliers', source=dict(type='TrainingPatches'), prob=0.9, size=(0.1, 0.6))
train_pipeline = [*_base_.train_pipeline[:2], paste_outliers, *_base_.train_pipeline[2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    type='EoMTAnomalySegmentor',
    decode_head=dict(type='EoMTAnomalyHead', loss_outlier=dict(type='OutlierLoss')),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
# no MaskAnnealingHook: the base model's masks are annealed, and stay off
heads = ['decode_head.class_head', 'decode_head.mask_head']
custom_hooks = [dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05, trainable_modules=heads)]
