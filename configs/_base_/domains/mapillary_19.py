# Mapillary Vistas (Neuhold et al., ICCV 2017) with Cityscapes' 19 classes: 18,000 and 2,000 images. Labels are made once by
# tools/convert_domain.py mapillary data/mapillary, from those of version 1.2; for those of 2.0 set seg_map_path to
# 'training/v2.0/labels' and 'validation/v2.0/labels', and for those of 1.2 beside them to 'training/v1.2/labels' and so on.
mapillary_train = dict(
    type='CityscapesDataset',
    data_root='data/mapillary',
    data_prefix=dict(img_path='training/images', seg_map_path='training/labels'),
    img_suffix='.jpg',
    seg_map_suffix='_labelTrainIds.png',
)
mapillary_val = dict(
    type='CityscapesDataset',
    data_root='data/mapillary',
    data_prefix=dict(img_path='validation/images', seg_map_path='validation/labels'),
    img_suffix='.jpg',
    seg_map_suffix='_labelTrainIds.png',
)
