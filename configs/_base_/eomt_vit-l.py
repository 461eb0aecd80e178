# EoMT on DINOv2 ViT-L with registers, 640×640 crops, 19 classes. What vit says is said once: backbone and head, the data
# preprocessor and the windows get it. --cfg-options model.vit.pretrained=PATH reads other weights.
model = dict(
    type='EoMTSegmentor',
    vit=dict(
        arch='large',
        num_joint_blocks=4,
        img_size=(640, 640),
        pretrained='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth',
    ),
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type='EoMTViT'),
    decode_head=dict(type='EoMTHead', num_classes=19),
    train_cfg=dict(),
    test_cfg=dict(mode='slide_evenly'),  # as published; mode='slide' for the toolbox's windows
)
