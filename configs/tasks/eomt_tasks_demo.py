# The demo's tasks in one pass: its base model by day, and its adapters at dusk.
_base_ = '../eomt_demo.py'
model = dict(
    type='MultiTaskSegmentor',
    tasks=dict(
        day='work_dirs/eomt_demo/iter_600.pth',
        dusk='work_dirs/eomt_lora_demo/iter_200.pth',
    ),
)
