# EoMT with LoRA on Pascal Context, with the toolbox's own data pipeline: 480×480 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/pascal_context_59.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=59))
