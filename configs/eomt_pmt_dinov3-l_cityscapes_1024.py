# PMT, frozen DINOv3 ViT-L, Cityscapes with 1024×1024 crops: ours, the authors publish none. 107 epochs, as EoMT; batch norms
# see 4 images at once.
_base_ = ['_base_/pmt.py', '_base_/cityscapes_1024.py']
model = dict(vit=dict(img_size=_base_.crop_size))
