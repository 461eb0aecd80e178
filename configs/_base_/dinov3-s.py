# DINOv3 ViT-S: model = dict(vit=_base_.vit).
_base_ = 'dinov3_learning_rates.py'
vit = dict(arch='dinov3_small', num_joint_blocks=3, pretrained='hf://facebook/dinov3-vits16-pretrain-lvd1689m')
