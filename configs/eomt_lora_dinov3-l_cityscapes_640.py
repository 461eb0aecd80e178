# LoRA on eomt_dinov3-l_cityscapes_640.py: adapters and the head's new parts train, all at one rate.
_base_ = 'eomt_dinov3-l_cityscapes_640.py'
custom_hooks = [dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05), dict(type='MaskAnnealingHook')]
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))
