"""The images of Fishyscapes Static are made of Cityscapes and the published overlays."""

import numpy as np
import pytest
from made_sets import STATIC
from PIL import Image

from mmseg_eomt.anomaly import AnomalyDataset
from mmseg_eomt.anomaly.data.fishyscapes import make_static_images


@pytest.fixture
def overlay(tmp_path):
    """An image of Cityscapes, and an overlay and label of Fishyscapes."""
    frame = STATIC[0][5:]
    base = tmp_path / 'cityscapes' / 'leftImg8bit' / 'val' / 'frankfurt' / f'{frame}_leftImg8bit.png'
    base.parent.mkdir(parents=True)
    Image.fromarray(np.full((4, 6, 3), (10, 100, 250), np.uint8)).save(base)
    folder = tmp_path / 'fs' / 'fs_val_v3'
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / f'{STATIC[0]}_labels.png')
    np.savez(folder / f'{STATIC[0]}_rgb.npz', rgb=np.full((4, 6, 3), (-20, 30, 30), np.int16))
    return tmp_path


def test_overlays_are_added_and_the_dataset_reads_the_images(overlay):
    with pytest.raises(ValueError, match='make_static_images'):
        AnomalyDataset('fishyscapes_static', str(overlay / 'fs'))
    assert make_static_images(overlay / 'fs', overlay / 'cityscapes') == 1
    dataset = AnomalyDataset('fishyscapes_static', str(overlay / 'fs'))
    pixels = np.array(Image.open(dataset.get_data_info(0)['img_path']))
    assert (pixels == (0, 130, 255)).all()
    assert pixels.shape == (4, 6, 3)


def test_what_is_missing_is_named(overlay):
    with pytest.raises(ValueError, match=r'is an overlay of .*frankfurt_000001_046504_leftImg8bit.png, which is missing'):
        make_static_images(overlay / 'fs', overlay)
    with pytest.raises(ValueError, match=r'holds no fs_val_v3/####_<frame>_rgb.npz'):
        make_static_images(overlay, overlay)
