# Nighttime Driving's 50 labelled images (Dai and Van Gool, ITSC 2018), as downloaded.
nighttime_driving_test = dict(
    type='NightDrivingDataset',
    data_root='data/NighttimeDrivingTest',
    data_prefix=dict(img_path='leftImg8bit/test/night', seg_map_path='gtCoarse_daytime_trainvaltest/test/night'),
)
