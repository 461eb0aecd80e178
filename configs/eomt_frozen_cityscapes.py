# eomt_cityscapes.py with its backbone frozen.
_base_ = ['eomt_cityscapes.py', '_base_/frozen.py']
custom_hooks = _base_.frozen.custom_hooks
