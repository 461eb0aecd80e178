# Dark Zurich's 50 labelled images of the validation split (Sakaridis et al., ICCV 2019), as downloaded.
dark_zurich_val = dict(
    type='DarkZurichDataset',
    data_root='data/dark_zurich',
    data_prefix=dict(img_path='rgb_anon/val', seg_map_path='gt/val'),
)
