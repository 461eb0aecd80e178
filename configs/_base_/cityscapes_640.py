# Cityscapes, or data in its layout, at data/cityscapes, with 640×640 crops: the published pipeline, at this size.
_base_ = 'data_640.py'
data_root = 'data/cityscapes'
cityscapes = dict(type='CityscapesDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'), **cityscapes)
)
val_dataloader = dict(dataset=dict(data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'), **cityscapes))
test_dataloader = val_dataloader
