# EoMT with LoRA on Cityscapes, with the toolbox's own data pipeline: 512×1024 crops.
_base_ = ['../_base_/lora_any_data.py', 'mmseg::_base_/datasets/cityscapes.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=19))
train_dataloader = dict(batch_size=4)
