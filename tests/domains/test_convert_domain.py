"""Labels of other datasets become train ids, pixel by pixel, from files as they are downloaded."""

import cv2
import numpy as np
import pytest
from made_domains import CITYSCAPES_IDS, MADE, SIZE, VISTAS_V1, draw, mapped, write_image, write_label
from mmengine.config import Config
from mmseg.datasets import CityscapesDataset, MapillaryDataset_v2
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image
from test_domain_sets import DOMAINS, PIPELINE

from mmseg_eomt.commands.convert_domain import main
from mmseg_eomt.data.check import check_samples, samples_of
from mmseg_eomt.domains import label_maps
from mmseg_eomt.domains.convert import convert


@pytest.fixture(scope='module', autouse=True)
def toolbox() -> None:
    register_all_modules()


@pytest.mark.parametrize('name', ['gta5', 'synthia', 'mapillary'])
def test_converted_labels_are_what_the_ids_stand_for(name, tmp_path, in_process):
    labels = MADE[name][1](tmp_path)
    assert f'{name}: {len(labels)} files *_labelTrainIds.png written' in in_process(main, name, tmp_path)

    read = {}
    for config in Config.fromfile(next(DOMAINS.glob(f'{name}*.py'))).to_dict().values():
        dataset = DATASETS.build(dict(config, data_root=str(tmp_path), pipeline=PIPELINE))
        assert check_samples(list(samples_of(dataset, 19, 255))) == []
        for i in range(len(dataset)):
            sample = dataset[i]['data_samples']
            read[sample.img_path] = sample.gt_sem_seg.data[0].numpy()
    assert read.keys() == labels.keys()
    for path, label in labels.items():
        np.testing.assert_array_equal(read[path], label)

    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*_labelTrainIds.png')}
    next(iter(files)).unlink()
    assert f'1 files *_labelTrainIds.png written to {tmp_path}, {len(labels) - 1} were there' in in_process(
        main, name, tmp_path
    )
    assert sum(path.stat().st_mtime_ns == time for path, time in files.items()) == len(files) - 1


def test_the_tables_are_the_published_ones():
    table = {old: new for old, new in label_maps.MAPILLARY.items() if new != 255}
    assert table == VISTAS_V1
    assert {label_maps.CITYSCAPES[old] for old in CITYSCAPES_IDS} == {*range(19)}
    names = MapillaryDataset_v2.METAINFO['classes']
    found = {names[old]: new for old, new in label_maps.MAPILLARY_V2.items() if new != 255}
    assert found['Lane Marking - Arrow (Left)'] == found['Road'] == 0
    assert found['Traffic Light - Cyclists'] == 6 and found['Garage'] == 2
    assert 'Lane Marking - Crosswalk' not in found and 'Traffic Sign (Back)' not in found


def test_cityscapes_and_vistas_2_go_where_their_datasets_look(tmp_path):
    """And in --out, the folders are those of the dataset."""
    ids = draw(34, 0)
    write_label(tmp_path / 'city/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png', ids)
    write_label(tmp_path / 'vistas/training/v2.0/labels/a.png', draw(124, 1), palette=True)
    convert('cityscapes', tmp_path / 'city')
    convert('mapillary_v2', tmp_path / 'vistas', tmp_path / 'out')
    made = Image.open(tmp_path / 'city/gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png')
    np.testing.assert_array_equal(made, mapped(ids, {old: new for new, old in enumerate(CITYSCAPES_IDS)}))
    assert Image.open(tmp_path / 'out/training/v2.0/labels/a_labelTrainIds.png').size == SIZE[::-1]


def test_colours_are_read_as_the_ids_that_they_stand_for(tmp_path):
    train_ids = draw(20, 3)
    colours = np.array([*CityscapesDataset.METAINFO['palette'], (0, 0, 0)], np.uint8)[train_ids]
    write_label(tmp_path / 'labels/00001.png', colours)
    convert('gta5', tmp_path)
    made = np.array(Image.open(tmp_path / 'labels/00001_labelTrainIds.png'))
    np.testing.assert_array_equal(made, np.where(train_ids == 19, 255, train_ids))


def test_a_label_of_another_size_than_its_image_counts_for_nothing_and_is_named(tmp_path, in_process):
    MADE['gta5'][1](tmp_path)
    write_image(tmp_path / 'images/00002.png', 2, (20, 30))
    output = in_process(main, 'gta5', tmp_path)
    assert f'{tmp_path / "labels/00002.png"}: the label is 48×32 pixels, and its image 30×20' in output
    made = np.array(Image.open(tmp_path / 'labels/00002_labelTrainIds.png'))
    assert made.shape == (20, 30) and (made == 255).all()


def test_what_is_no_label_is_named_and_the_others_are_written(tmp_path, in_process):
    MADE['synthia'][1](tmp_path)
    cv2.imwrite(str(tmp_path / 'GT/LABELS/0000003.png'), np.zeros((*SIZE, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'GT/LABELS/0000004.png'), np.full((*SIZE, 3), 23, np.uint16))
    output = in_process(main, 'synthia', tmp_path, check=False)
    assert '2 of 4 images cannot be used' in output
    assert '0000003.png: the label is not a PNG of 16-bit colours' in output
    assert '0000004.png: id 23 is none of those of the dataset (0 to 22)' in output
    assert len(list(tmp_path.rglob('*_labelTrainIds.png'))) == 2


def test_mistakes_are_explained(tmp_path, in_process):
    assert 'holds no labels of gta5, which would be labels/*.png' in in_process(main, 'gta5', tmp_path, check=False)
    assert "no dataset 'kitti' to convert: choose one of cityscapes, gta5" in in_process(main, 'kitti', '.', check=False)
    assert 'acdc is read as it is downloaded' in in_process(main, 'acdc', tmp_path, check=False)
