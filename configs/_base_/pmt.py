# PMT: a frozen ViT under a decoder of six blocks. Learning rate, warm-up and clipping are the authors'; their steps of mask
# annealing are fractions of the run here: on ADE20K they train for 20,192 steps of 16 images.
_base_ = ['eomt_vit-l.py', 'schedule_cityscapes_107e.py', 'runtime.py']
model = dict(
    vit=dict(
        _delete_=True,
        arch='dinov3_large',
        img_size=(640, 640),
        pretrained='hf://facebook/dinov3-vitl16-pretrain-lvd1689m',
    ),
    backbone=dict(type='LateralViT'),
    decode_head=dict(type='PMTHead', num_blocks=6, mlp_hidden_dims=1024),
)
custom_hooks = [
    dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head']),
    dict(
        type='MaskAnnealingHook',
        start_iters=[0.0, 4 / 15, 11 / 30, 14 / 30, 17 / 30, 20 / 30],
        end_iters=[3000 / 20192, 13 / 30, 16 / 30, 19 / 30, 22 / 30, 25 / 30],
    ),
]
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type='WarmupCosineLR', warmup_steps=6000, min_lr=1e-9, by_epoch=False)]
sync_bn = 'torch'  # batch norms over all GPUs of a distributed run, as published
