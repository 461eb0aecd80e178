# RbA as published, on the public Cityscapes model: 2,000 steps of the class and mask heads alone, with outliers pasted
# into a tenth of the images. No gradient runs through the ViT. Outliers are COCO's objects of classes unknown to Cityscapes.
_base_ = '../eomt_cityscapes_1024.py'
load_from = 'hf://tue-mps/cityscapes_semantic_eomt_large_1024'
paste_outliers = dict(
    type='PasteOutliers',
    source=dict(
        type='CocoInstances',
        images='data/coco/train2017',
        annotations='data/coco/annotations/instances_train2017.json',
    ),
    prob=0.1,
)
train_pipeline = [*_base_.train_pipeline[:2], paste_outliers, *_base_.train_pipeline[2:]]  # before colours and crop
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(
    type='EoMTAnomalySegmentor',
    decode_head=dict(type='EoMTAnomalyHead', loss_outlier=dict(type='OutlierLoss')),
)
# no MaskAnnealingHook: the model's masks are annealed, and stay off
custom_hooks = [
    dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head.class_head', 'decode_head.mask_head'])
]
max_iters = 8000  # 2,000 steps of 4 × 4 images
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [dict(type='TwoWarmupsPolyLR', warmup_steps=(10, 0), power=0.9, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=2000, save_best=None))
