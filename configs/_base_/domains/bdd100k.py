# BDD100K's images with semantic masks (Yu et al., CVPR 2020): 7,000 and 1,000, as downloaded.
bdd100k_train = dict(
    type='BDD100KDataset',
    data_root='data/bdd100k',
    data_prefix=dict(img_path='images/10k/train', seg_map_path='labels/sem_seg/masks/train'),
)
bdd100k_val = dict(
    type='BDD100KDataset',
    data_root='data/bdd100k',
    data_prefix=dict(img_path='images/10k/val', seg_map_path='labels/sem_seg/masks/val'),
)
