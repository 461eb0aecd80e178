# GTA5 (Richter et al., ECCV 2016): 24,966 frames of a game, images/00001.png and labels/00001.png. Labels are made once by
# tools/convert_domain.py gta5 data/gta.
gta5_train = dict(
    type='CityscapesDataset',
    data_root='data/gta',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    img_suffix='.png',
    seg_map_suffix='_labelTrainIds.png',
)
