# PMT, frozen DINOv3 ViT-L, ADE20K with 512×512 crops: a published model. Its batch norms see 16 images at once.
_base_ = ['_base_/pmt.py', '_base_/ade20k_512.py']
model = dict(vit=dict(img_size=_base_.crop_size), decode_head=dict(num_classes=150))
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=1)
train_cfg = dict(max_iters=20192, val_interval=1262)
default_hooks = dict(checkpoint=dict(interval=1262))
auto_scale_lr = dict(base_batch_size=16)
