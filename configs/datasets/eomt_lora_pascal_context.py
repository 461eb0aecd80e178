# EoMT with LoRA on Pascal Context, with the toolbox's own data pipeline: 480×480 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/pascal_context_59.py']
size = _base_.crop_size
sizes = dict(data_preprocessor=dict(size=size), backbone=dict(img_size=size), test_cfg=dict(crop_size=size, stride=size))
model = dict(decode_head=dict(num_classes=59), **sizes)
