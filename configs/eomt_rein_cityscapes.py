# Rein on eomt_cityscapes.py: the ViT is frozen, and tokens refine its patches after each block.
_base_ = ['eomt_cityscapes.py']
model = dict(backbone=dict(type='ReinViT'), decode_head=dict(type='ReinHead'))
custom_hooks = [
    dict(
        type='LoRAHook',
        target_modules=[],
        trainable_modules=[
            'backbone.rein',
            'decode_head.joint_rein',
            'decode_head.query_embed',
            'decode_head.class_head',
            'decode_head.mask_head',
            'decode_head.upscale',
        ],
    ),
    dict(type='MaskAnnealingHook'),
]
