# DINOv3 ViT-B: model = dict(vit=_base_.vit).
_base_ = 'dinov3_learning_rates.py'
vit = dict(arch='dinov3_base', num_joint_blocks=3, pretrained='hf://facebook/dinov3-vitb16-pretrain-lvd1689m')
