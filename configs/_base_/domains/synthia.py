# SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9,400 frames, with 16 of the 19 classes: no terrain, truck and train.
# Labels are made once by tools/convert_domain.py synthia data/synthia.
synthia_train = dict(
    type='CityscapesDataset',
    data_root='data/synthia',
    data_prefix=dict(img_path='RGB', seg_map_path='GT/LABELS'),
    img_suffix='.png',
    seg_map_suffix='_labelTrainIds.png',
)
