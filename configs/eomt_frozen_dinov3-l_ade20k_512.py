# eomt_dinov3-l_ade20k_512.py with its backbone frozen.
_base_ = ['eomt_dinov3-l_ade20k_512.py', '_base_/frozen.py']
custom_hooks = _base_.frozen.custom_hooks
