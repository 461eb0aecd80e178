# The demo's adaptation: the base model of eomt_demo.py, adapted to dusk with LoRA.
_base_ = 'eomt_demo.py'
look = 'dusk'
max_iters = 200
load_from = 'work_dirs/eomt_demo/iter_600.pth'
train_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path=f'leftImg8bit/train/{look}', seg_map_path=f'gtFine/train/{look}'))
)
val_dataloader = dict(dataset=dict(data_prefix=dict(img_path=f'leftImg8bit/val/{look}', seg_map_path=f'gtFine/val/{look}')))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=20, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
# no MaskAnnealingHook: the base model's masks are annealed, and stay off
custom_hooks = [dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05)]
