# The backbone frozen, and the decode head trained: its joint blocks, which are the ViT's last, queries and heads. Learning
# rates, layer decay and warm-ups stay the recipe's.
frozen = dict(
    custom_hooks=[
        dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head']),
        dict(type='MaskAnnealingHook'),
    ],
)
# Features of the frozen backbone on disk: each image in 4 fixed views; at most 60 GB.
feature_cache = dict(type='FeatureCacheHook', dir='work_dirs/features', views=4, max_size='60GB')
