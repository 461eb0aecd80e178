# SoMA's recipe on GTA5, DINOv2 ViT-L, for other cities and weather than were trained on.
_base_ = ['_base_/eomt_vit-l.py', '_base_/gta5_512.py', '_base_/lora_robust.py']
model = dict(vit=dict(img_size=_base_.crop_size), test_cfg=dict(mode='slide', stride=(341, 341)))
