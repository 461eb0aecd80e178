# GTA5 at data/gta, its labels as Cityscapes' train ids in *_labelTrainIds.png, with SoMA's pipelines at 512×512; evaluated
# on Cityscapes.
_base_ = 'data_soma_512.py'
train_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root='data/gta',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        seg_map_suffix='_labelTrainIds.png',
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CityscapesDataset',
        data_root='data/cityscapes',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    )
)
test_dataloader = val_dataloader
