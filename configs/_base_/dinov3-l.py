# DINOv3 ViT-L: model = dict(vit=_base_.vit).
_base_ = 'dinov3_learning_rates.py'
vit = dict(arch='dinov3_large', num_joint_blocks=4, pretrained='hf://facebook/dinov3-vitl16-pretrain-lvd1689m')
