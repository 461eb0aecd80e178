# LoRA for a recipe: adapters and the head's randomly initialised parts train, all at one learning rate.
lora = dict(
    custom_hooks=[dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05), dict(type='MaskAnnealingHook')],
    optim_wrapper=dict(paramwise_cfg=dict(layer_decay=1.0)),
)
