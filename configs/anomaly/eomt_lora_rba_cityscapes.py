# RbA on one's own LoRA run of eomt_lora_cityscapes.py, at 640×640: its adapters, class head and mask head go on training.
_base_ = 'eomt_lora_rba_cityscapes_1024.py'
load_from = 'work_dirs/eomt_lora_cityscapes/iter_79608.pth'
