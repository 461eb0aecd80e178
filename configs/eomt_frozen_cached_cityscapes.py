# eomt_frozen_cityscapes.py with the backbone's features on disk: 44 GB, computed once.
_base_ = 'eomt_frozen_cityscapes.py'
custom_hooks = [*_base_.custom_hooks, _base_.feature_cache]
