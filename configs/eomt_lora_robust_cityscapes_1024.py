# SoMA's recipe on Cityscapes, DINOv2 ViT-L, as its sora_dinov2_mask2former_c2bm_1024x1024.py: a warm-up, and a later EMA.
_base_ = ['_base_/eomt_vit-l.py', '_base_/cityscapes_soma_1024.py', '_base_/lora_robust.py']
model = dict(vit=dict(img_size=_base_.crop_size), test_cfg=dict(mode='slide', stride=(683, 683)))
custom_hooks = [dict(hook, begin_iter=16000) if hook['type'] == 'EMAHook' else hook for hook in _base_.custom_hooks]
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=1500, by_epoch=False),
    _base_.param_scheduler[1],
]
