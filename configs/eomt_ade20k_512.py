# EoMT, DINOv2 ViT-L, ADE20K with 512×512 crops, all parameters trained: a published model.
_base_ = ['_base_/eomt_vit-l.py', '_base_/ade20k_512.py', '_base_/schedule_ade20k_31e.py', '_base_/runtime.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=150))
default_hooks = dict(checkpoint=dict(interval=15168))
