# As eomt_lora_cityscapes.py, with 1024×1024 crops of full-size images.
_base_ = 'eomt_cityscapes_1024.py'
custom_hooks = [
    dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05),
    dict(type='MaskAnnealingHook'),
]
