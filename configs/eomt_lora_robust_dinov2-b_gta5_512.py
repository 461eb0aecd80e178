# SoMA's recipe on GTA5, DINOv2 ViT-B: adapted but for the first third, as ViT-L. SoMA publishes no such config.
_base_ = ['eomt_lora_robust_gta5_512.py', '_base_/dinov2-b.py']
model = dict(vit=_base_.vit)
custom_hooks = [dict(hook, blocks=(4, -1)) if hook['type'] == 'LoRAHook' else hook for hook in _base_.custom_hooks]
