# UrbanSyn (Gómez et al., 2023): 7,539 frames, rgb/rgb_0001.png and ss/ss_0001.png, as downloaded.
urbansyn_train = dict(type='UrbanSynDataset', data_root='data/urbansyn')
