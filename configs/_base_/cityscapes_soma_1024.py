# Cityscapes at data/cityscapes with SoMA's pipelines at 1024×1024.
_base_ = 'data_soma_512.py'
crop_size = (1024, 1024)
sizes = dict(scales=[1024 * tenths // 10 for tenths in range(5, 21)], max_size=4096, crop_size=crop_size)
train_pipeline = [{key: sizes.get(key, value) for key, value in step.items()} for step in _base_.train_pipeline]
cityscapes = dict(type='CityscapesDataset', data_root='data/cityscapes')
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'), pipeline=train_pipeline, **cityscapes
    )
)
val_dataloader = dict(dataset=dict(data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'), **cityscapes))
test_dataloader = val_dataloader
