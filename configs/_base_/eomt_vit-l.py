# EoMT on DINOv2 ViT-L with registers, 640×640 crops, 19 classes.
image_size = (640, 640)
num_classes = 19
arch = 'large'
pretrained = dict(
    type='Pretrained',
    checkpoint='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth',
)
model = dict(
    type='EoMTSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=image_size,
    ),
    backbone=dict(type='EoMTViT', arch=arch, img_size=image_size, init_cfg=pretrained),
    decode_head=dict(type='EoMTHead', arch=arch, num_classes=num_classes, init_cfg=pretrained),
    train_cfg=dict(),
    # as published; mode='slide' for the toolbox's windows, which alone have a stride
    test_cfg=dict(mode='slide_evenly', crop_size=image_size, stride=image_size),
)
