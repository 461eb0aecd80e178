# A small EoMT from random weights that trains on a CPU: ViT 192×6×3, 320×320 crops, 1,200 iterations.
_base_ = 'eomt_cityscapes.py'
crop_size = (320, 320)
scale = (640, 320)
max_iters = 1200
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion', saturation_range=(1.0, 1.0), hue_delta=1),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
model = dict(
    vit=dict(
        arch=dict(_delete_=True, embed_dims=192, num_layers=6, num_heads=3, layer_scale_init=1.0),
        num_joint_blocks=2,
        img_size=crop_size,
        pretrained=None,
    ),
    decode_head=dict(num_queries=50, num_points=4096),
)
train_dataloader = dict(num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=100, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = [
    dict(type='MaskAnnealingHook', start_iters=[240, 540], end_iters=[540, 840]),
]
tta_sizes = [dict(type='Resize', scale=size, keep_ratio=True) for size in ((480, 240), (640, 320), (800, 400))]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *_base_.tta_steps])]
