# The demo's adaptation as eomt_lora_demo.py, with the backbone frozen and its features cached in place of adapters.
_base_ = 'eomt_lora_demo.py'
optim_wrapper = dict(optimizer=dict(lr=1e-3))
# no MaskAnnealingHook: the base model's masks are annealed, and stay off
custom_hooks = [
    dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head']),
    dict(type='FeatureCacheHook', dir='work_dirs/eomt_frozen_demo/features', views=4, max_size='1GB'),
]
