# eomt_dinov2-b_cityscapes_640.py with its backbone frozen.
_base_ = ['eomt_dinov2-b_cityscapes_640.py', '_base_/frozen.py']
custom_hooks = _base_.frozen.custom_hooks
