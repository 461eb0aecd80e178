# The published pipelines at 640×640, for any dataset: images whose longer side is 640 times 0.5 to 2, padded and cropped to
# 640×640; evaluated at a shorter side of 640, whatever the longer one is.
crop_size = (640, 640)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='EoMTAugment', crop_size=crop_size),  # colours, flip, scale, padding, crop
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='EoMTResize', size=crop_size),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_steps = [  # after resizing
    [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)],
    [dict(type='LoadAnnotations')],
    [dict(type='PackSegInputs')],
]
tta_sizes = [dict(type='EoMTResize', size=size) for size in (480, 640, 800)]
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[tta_sizes, *tta_steps])]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
