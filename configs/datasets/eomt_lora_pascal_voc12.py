# EoMT with LoRA on Pascal VOC 2012 with its additional masks, with the toolbox's own data pipeline: 512×512 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/pascal_voc12_aug.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=21))
