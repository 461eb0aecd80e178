# RbA with LoRA: adapters in the ViT train beside the class and mask heads.
_base_ = 'eomt_rba_cityscapes_1024.py'
heads = ['decode_head.class_head', 'decode_head.mask_head']
custom_hooks = [dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05, trainable_modules=heads)]
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0))
