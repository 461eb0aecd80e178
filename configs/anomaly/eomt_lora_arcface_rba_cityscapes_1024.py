# RbA with LoRA and a cosine class head with an angular margin (ArcFace). The public linear head becomes the cosine one.
_base_ = 'eomt_lora_rba_cityscapes_1024.py'
model = dict(decode_head=dict(cosine_head=dict(scale=16.0, margin=0.2)))
custom_hooks = [*_base_.custom_hooks, dict(type='MarginWarmupHook')]
