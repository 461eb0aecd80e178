# LoRA on eomt_cityscapes.py.
_base_ = ['eomt_cityscapes.py', '_base_/lora.py']
custom_hooks = _base_.lora.custom_hooks
optim_wrapper = _base_.lora.optim_wrapper
