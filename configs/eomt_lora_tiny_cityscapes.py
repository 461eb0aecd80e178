# LoRA on the small EoMT that eomt_tiny_cityscapes.py has trained.
_base_ = 'eomt_tiny_cityscapes.py'
load_from = 'work_dirs/eomt_tiny_cityscapes/iter_1200.pth'
# no MaskAnnealingHook: the base model's masks are annealed, and stay off
custom_hooks = [dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05)]
