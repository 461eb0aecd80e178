# What every run shares: registration, hooks, logging, environment.
custom_imports = dict(imports=['mmseg_eomt'], allow_failed_imports=False)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # gloo on a machine without a GPU
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3720, max_keep_ckpts=2, save_best='mIoU'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    data_wait=dict(type='DataWaitHook'),  # warns once if training waits for data
    data_check=dict(type='DataCheckHook'),  # every file, before training
    visualization=dict(type='SegVisualizationHook', interval=1),  # every image, with tools/test.py --show-dir
)
custom_hooks = [dict(type='MaskAnnealingHook')]

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
