# EoMT, DINOv2 ViT-L, Cityscapes, all parameters trained: the baseline of eomt_lora_cityscapes.py.
_base_ = ['_base_/eomt_vit-l.py', '_base_/cityscapes_640.py', '_base_/schedule_cityscapes_107e.py', '_base_/runtime.py']
