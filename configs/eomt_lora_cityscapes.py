# EoMT, DINOv2 ViT-L, Cityscapes, LoRA adapters in the attention layers and the head's new parts trained.
_base_ = 'eomt_cityscapes.py'
custom_hooks = [
    dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05),
    dict(type='MaskAnnealingHook'),
]
