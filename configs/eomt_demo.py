# The demo's base model: a smaller one than eomt_tiny_cityscapes.py, from random weights, on synthetic street scenes by day.
_base_ = 'eomt_tiny_cityscapes.py'
data_root = 'data/street_scenes'
look = 'day'
crop_size = (128, 128)
max_iters = 600
randomness = dict(seed=0)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
model = dict(
    vit=dict(arch=dict(embed_dims=128, num_heads=4), patch_size=8, img_size=crop_size),
    decode_head=dict(num_queries=24, num_points=2048),
    test_cfg=dict(mode='whole'),
)
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path=f'leftImg8bit/train/{look}', seg_map_path=f'gtFine/train/{look}'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path=f'leftImg8bit/val/{look}', seg_map_path=f'gtFine/val/{look}'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters, save_best=None))
custom_hooks = [dict(type='MaskAnnealingHook')]
tta_sizes = [dict(type='Resize', scale=(256, 128), keep_ratio=True)]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *_base_.tta_steps])]
