# SoMA's recipe trained on Cityscapes and evaluated in ACDC's fog, night, rain and snow: mIoU is the mean over them.
_base_ = ['../eomt_lora_robust_cityscapes_1024.py', '../_base_/domains/acdc.py']
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='DomainsDataset',
        pipeline=_base_.test_pipeline,
        domains=dict(
            fog=_base_.acdc_fog_val, night=_base_.acdc_night_val, rain=_base_.acdc_rain_val, snow=_base_.acdc_snow_val
        ),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type='DomainIoUMetric')
test_evaluator = val_evaluator
