# ACDC (Sakaridis et al., ICCV 2021): fog, night, rain and snow, as downloaded. The labels of its test split are not public.
acdc_fog_train, acdc_night_train, acdc_rain_train, acdc_snow_train = (
    dict(
        type='DarkZurichDataset',  # the same names of files
        data_root='data/acdc',
        data_prefix=dict(img_path=f'rgb_anon/{weather}/train', seg_map_path=f'gt/{weather}/train'),
    )
    for weather in ('fog', 'night', 'rain', 'snow')
)
acdc_fog_val, acdc_night_val, acdc_rain_val, acdc_snow_val = (
    dict(
        type='DarkZurichDataset',
        data_root='data/acdc',
        data_prefix=dict(img_path=f'rgb_anon/{weather}/val', seg_map_path=f'gt/{weather}/val'),
    )
    for weather in ('fog', 'night', 'rain', 'snow')
)
