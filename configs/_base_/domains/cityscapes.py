# Cityscapes (Cordts et al., CVPR 2016). Where gtFine has no *_labelTrainIds.png yet: tools/convert_domain.py cityscapes
# data/cityscapes.
cityscapes_train = dict(
    type='CityscapesDataset',
    data_root='data/cityscapes',
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
)
cityscapes_val = dict(
    type='CityscapesDataset',
    data_root='data/cityscapes',
    data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
)
