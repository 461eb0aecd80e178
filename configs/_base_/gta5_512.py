# GTA5 (domains/gta5.py) with SoMA's pipelines at 512×512, evaluated on Cityscapes.
_base_ = ['data_soma_512.py', 'domains/gta5.py']
train_dataloader = dict(dataset=_base_.gta5_train)
val_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root='data/cityscapes',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    )
)
test_dataloader = val_dataloader
