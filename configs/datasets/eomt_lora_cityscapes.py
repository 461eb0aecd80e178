# EoMT with LoRA on Cityscapes, with the toolbox's own data pipeline: 512×1024 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/cityscapes.py']
size = _base_.crop_size
sizes = dict(data_preprocessor=dict(size=size), backbone=dict(img_size=size), test_cfg=dict(crop_size=size, stride=size))
model = dict(decode_head=dict(num_classes=19), **sizes)
train_dataloader = dict(batch_size=4)
