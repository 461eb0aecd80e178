# SoMA's recipe (Yun et al., CVPR 2025; github.com/ysj9909/SoMA, configs/sora/sora_dinov2-L_mask2former.py) for EoMT, ViT-L.
# What it defines is as there: adapters, learning rates, weight decay, EMA, batch of 4, 40,000 iterations. So there are no
# warm-ups, no layer_decay and no accumulation. What it leaves to the model is EoMT's: its loss, clipped gradients, mask
# annealing. What is SoMA's backbone are the blocks of the ViT, the joint ones too.
_base_ = 'runtime.py'
custom_hooks = [
    dict(
        type='LoRAHook',
        r=16,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=['qkv', 'proj', 'fc1', 'fc2'],
        split_qkv=True,
        blocks=(8, -1),  # all but the first third
        peft=dict(init_lora_weights='minor', bias='lora_only'),  # biases of adapted layers train too
    ),
    dict(type='MaskAnnealingHook'),
    dict(type='EMAHook', begin_iter=12000),  # evaluation and checkpoints take the average; momentum 0.0002
    dict(type='WeightDecayLogHook'),
]
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='EoMTOptimWrapperConstructor',
    paramwise_cfg=dict(
        layer_decay=1.0,
        custom_keys={
            'blocks': dict(lr_mult=0.5),  # adapters and biases
            'query_embed': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
        },
    ),
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False),
    # to 1e-5, as a fraction of 0.05: eta_min=1e-5 would give groups without weight decay some
    dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=2e-4, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
auto_scale_lr = dict(enable=False, base_batch_size=4)  # in all processes
default_hooks = dict(checkpoint=dict(interval=4000))
