# EoMT with LoRA on COCO-Stuff, with the toolbox's own data pipeline: 512×512 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/coco-stuff164k.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=171))
