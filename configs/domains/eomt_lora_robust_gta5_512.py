# SoMA's recipe trained on GTA5 and evaluated on three other domains: mIoU is the mean over them, mIoU/bdd100k one of them.
_base_ = [
    '../eomt_lora_robust_gta5_512.py',
    '../_base_/domains/cityscapes.py',
    '../_base_/domains/bdd100k.py',
    '../_base_/domains/mapillary_19.py',
]
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='DomainsDataset',
        pipeline=_base_.test_pipeline,
        domains=dict(cityscapes=_base_.cityscapes_val, bdd100k=_base_.bdd100k_val, mapillary=_base_.mapillary_val),
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type='DomainIoUMetric')
test_evaluator = val_evaluator
