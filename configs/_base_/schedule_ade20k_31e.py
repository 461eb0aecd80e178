# As schedule_cityscapes_107e.py: 31 epochs of ADE20K's 20,210 images, 1,264 steps per epoch.
_base_ = 'schedule_cityscapes_107e.py'
train_cfg = dict(max_iters=156736, val_interval=15168)
