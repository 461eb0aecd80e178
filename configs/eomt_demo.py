# The demo's base model: a small EoMT from random weights, on synthetic street scenes by day.
_base_ = 'eomt_cityscapes.py'
data_root = 'data/street_scenes'
look = 'day'
crop_size = (128, 128)
max_iters = 600
randomness = dict(seed=0)
arch = dict(_delete_=True, embed_dims=128, num_layers=6, num_heads=4, layer_scale_init=1.0)
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
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch=arch, img_size=crop_size, patch_size=8, num_joint_blocks=2, init_cfg=None),
    decode_head=dict(arch=arch, patch_size=8, num_joint_blocks=2, num_queries=24, num_points=2048, init_cfg=None),
    test_cfg=dict(_delete_=True, mode='whole'),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path=f'leftImg8bit/train/{look}', seg_map_path=f'gtFine/train/{look}'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path=f'leftImg8bit/val/{look}', seg_map_path=f'gtFine/val/{look}'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=50, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters, save_best=None))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((256, 128),)],
            [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
