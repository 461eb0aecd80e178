# EoMT with LoRA, DINOv2 ViT-L, without data: 20,000 steps, effective batch size 16. Add a dataset file of the toolbox.
_base_ = ['eomt_vit-l.py', 'schedule_cityscapes_107e.py', 'runtime.py', 'lora.py']
custom_hooks = _base_.lora.custom_hooks
optim_wrapper = _base_.lora.optim_wrapper
model = dict(test_cfg=dict(mode='slide'))  # the toolbox's windows, for its pipelines
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=4000))
