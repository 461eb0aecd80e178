# LoRA on eomt_dinov2-s_cityscapes_1024.py.
_base_ = ['eomt_dinov2-s_cityscapes_1024.py', '_base_/lora.py']
custom_hooks = _base_.lora.custom_hooks
optim_wrapper = _base_.lora.optim_wrapper
