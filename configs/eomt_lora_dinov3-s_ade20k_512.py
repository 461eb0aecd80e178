# LoRA on eomt_dinov3-s_ade20k_512.py.
_base_ = ['eomt_dinov3-s_ade20k_512.py', '_base_/lora.py']
custom_hooks = _base_.lora.custom_hooks
optim_wrapper = _base_.lora.optim_wrapper
