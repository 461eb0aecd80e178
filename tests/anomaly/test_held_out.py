"""Classes of any labelled dataset are held out: ignored in training, anomalies in evaluation."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import make_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_eomt.anomaly import HeldOutClassesDataset
from mmseg_eomt.data.check import check_samples, samples_of

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
NAMES = ('road', 'car', 'cow', 'sky')
ROWS = dict(a=(0, 1, 2, 3, 4, 255), b=(0, 1, 2, 4, 255), c=(1, 3, 4), d=(4, 2, 255))  # ids in the masks


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope('mmseg')  # as a Runner does


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images whose masks hold ids in columns, and a list of two of them."""
    for name, ids in ROWS.items():
        for kind, array in (('img', np.zeros((8, 12, 3), np.uint8)), ('ids', np.resize(np.array(ids, np.uint8), (8, 12)))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f'{name}.{"jpg" if kind == "img" else "png"}')
    (tmp_path / 'two.txt').write_text('c\na\n')
    return tmp_path


def inner(folder: Path, classes: tuple[str, ...] = (*NAMES, 'bus'), **options) -> dict:
    prefix = dict(img_path='img', seg_map_path='ids')
    return dict(type='BaseSegDataset', data_root=str(folder), data_prefix=prefix, metainfo=dict(classes=classes), **options)


def cityscapes(scenes: Path, split: str = 'val', **options) -> dict:
    prefix = dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}')
    return dict(type='CityscapesDataset', data_root=str(scenes), data_prefix=prefix, **options)


def mapping(dataset: HeldOutClassesDataset) -> dict[int, int]:
    """What the pipeline makes of each stored id, over all images."""
    pairs = set()
    for sample in map(dataset.__getitem__, range(len(dataset))):
        stored = np.array(Image.open(sample['data_samples'].seg_map_path))
        labels = sample['data_samples'].gt_sem_seg.data[0].numpy()
        pairs |= set(zip(stored.ravel().tolist(), labels.ravel().tolist()))
    assert len(dict(pairs)) == len(pairs)
    return dict(sorted(pairs))


def test_held_out_classes_are_anomalies_and_the_others_inliers(folder):
    dataset = HeldOutClassesDataset(inner(folder), ['cow', 'road'], pipeline=PIPELINE)
    assert mapping(dataset) == {0: 1, 1: 0, 2: 1, 3: 0, 4: 0, 255: 255}
    assert dataset.metainfo['classes'] == ('car', 'sky', 'bus')


def test_in_training_they_are_ignored_and_the_others_are_counted_anew(folder):
    dataset = HeldOutClassesDataset(inner(folder), ['cow', 'road'], split='train', pipeline=PIPELINE)
    assert mapping(dataset) == {0: 255, 1: 0, 2: 255, 3: 1, 4: 2, 255: 255}
    assert dataset.metainfo['classes'] == ('car', 'sky', 'bus')


def test_reduce_zero_label_comes_first(folder):
    dataset = HeldOutClassesDataset(inner(folder, NAMES, reduce_zero_label=True), ['cow'], pipeline=PIPELINE)
    assert mapping(dataset) == {0: 255, 1: 0, 2: 0, 3: 1, 4: 0, 255: 255}
    train = HeldOutClassesDataset(inner(folder, NAMES, reduce_zero_label=True), ['cow'], split='train', pipeline=PIPELINE)
    assert mapping(train) == {0: 255, 1: 0, 2: 1, 3: 255, 4: 2, 255: 255}
    assert train.known_ids == dataset.known_ids == (0, 1, 2, 3, 4, 255)


@pytest.mark.parametrize(('split', 'road', 'sky', 'car'), [('anomaly', 0, 0, 1), ('train', 1, 0, 255)])
def test_a_dataset_with_fewer_classes_in_another_order_keeps_ignoring_the_rest(scenes, split, road, sky, car):
    data = cityscapes(scenes, metainfo=dict(classes=('sky', 'car', 'road')))
    dataset = HeldOutClassesDataset(data, ['car'], split=split, pipeline=PIPELINE)
    ids = mapping(dataset)
    assert (ids.pop(0), ids.pop(10), ids.pop(13)) == (road, sky, car)
    assert set(ids.values()) == {255}
    assert dataset.metainfo['classes'] == ('sky', 'road')
    assert dataset.metainfo['palette'] == [[70, 130, 180], [128, 64, 128]]


def test_an_ignored_id_of_the_dataset_stays_ignored(folder):
    dataset = HeldOutClassesDataset(inner(folder, NAMES, ignore_index=4), ['cow'], pipeline=PIPELINE)
    assert mapping(dataset)[4] == 255


def test_the_toolbox_delivers_the_same_training_labels_for_the_remaining_classes(scenes):
    held_out = HeldOutClassesDataset(cityscapes(scenes), ['car', 'person'], split='train', pipeline=PIPELINE)
    stock = DATASETS.build(cityscapes(scenes, metainfo=dict(classes=held_out.metainfo['classes']), pipeline=PIPELINE))
    assert mapping(held_out) == mapping(stock)
    assert held_out.metainfo['palette'] == stock.metainfo['palette']


def test_the_pipeline_may_stand_in_the_dataset(folder):
    dataset = HeldOutClassesDataset(inner(folder, pipeline=PIPELINE), ['cow'])
    assert mapping(dataset)[2] == 1
    assert len(HeldOutClassesDataset(inner(folder, pipeline=PIPELINE), ['cow'], pipeline=[]).pipeline.transforms) == 0


def test_images_with_or_without_the_classes_can_be_chosen(folder):
    def stems(**options) -> list[str]:
        dataset = HeldOutClassesDataset(inner(folder), ['cow'], **options)
        return [Path(dataset.get_data_info(i)['img_path']).stem for i in range(len(dataset))]

    assert stems() == ['a', 'b', 'c', 'd']
    assert stems(images='with') == ['a', 'b', 'd']
    assert stems(images='without', split='train') == ['c']
    shifted = HeldOutClassesDataset(inner(folder, NAMES, reduce_zero_label=True), ['cow'], images='with')
    assert len(shifted) == 2  # stored as 3
    with pytest.raises(ValueError, match='None of 1 images is with a held-out class'):
        HeldOutClassesDataset(inner(folder, indices=[2]), ['cow'], images='with')


def test_lists_indices_and_lazy_loading_work(folder):
    listed = HeldOutClassesDataset(inner(folder, ann_file='two.txt'), ['cow'], indices=1)
    assert [Path(listed.get_data_info(i)['img_path']).stem for i in range(len(listed))] == ['c']
    lazy = HeldOutClassesDataset(inner(folder / 'none'), ['cow'], lazy_init=True)
    assert lazy.metainfo['classes'] == ('road', 'car', 'sky', 'bus')
    with pytest.raises(FileNotFoundError):
        lazy.full_init()


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset'])
def test_it_works_inside_mmengines_wrappers(folder, wrapper):
    part = dict(type='HeldOutClassesDataset', dataset=inner(folder), anomaly_classes=['cow'], pipeline=PIPELINE)
    options = dict(datasets=[part, part]) if wrapper == 'ConcatDataset' else dict(dataset=part, times=2)
    dataset = DATASETS.build(dict(type=wrapper, **options))
    assert len(dataset) == 8
    assert mapping(dataset) == {0: 0, 1: 0, 2: 1, 3: 0, 4: 0, 255: 255}
    assert check_samples(list(samples_of(dataset, 4, 255))) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(anomaly_classes=['horse', 'cow']),
            r"has 'horse', and the classes of BaseSegDataset are road, car, cow, sky, bus",
        ),
        (dict(anomaly_classes=[]), 'is empty: hold out at least one of road, car'),
        (dict(anomaly_classes='cow'), r"got the text 'cow': write \['cow'\]"),
        (dict(anomaly_classes=['road', 'car', 'cow', 'sky']), 'leaves 1 of 5 classes'),
        (dict(anomaly_classes=['road', 'car', 'cow', 'sky', 'bus']), 'leaves 0 of 5 classes'),
        (dict(anomaly_classes=['cow'], split='val'), "split is one of 'train', 'anomaly', got 'val'"),
        (dict(anomaly_classes=['cow'], images='some'), "images is one of 'all', 'with', 'without', got 'some'"),
        (dict(anomaly_classes=['cow'], data_root='x'), r'data_root of HeldOutClassesDataset: put it into dataset=dict'),
    ],
)
def test_wrong_arguments_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        HeldOutClassesDataset(inner(folder), **options)


def test_a_dataset_without_labels_of_pixels_is_refused():
    with pytest.raises(ValueError, match=r"config of one labelled dataset .* got type='ConcatDataset': hold"):
        HeldOutClassesDataset(dict(type='ConcatDataset', datasets=[]), ['cow'])


def held_out(config, loader: str, scenes: Path, split: str) -> None:
    """Hold cars out of a loader's dataset."""
    dataset = config[loader].dataset
    config[loader].dataset = dict(type='HeldOutClassesDataset', dataset=dataset, anomaly_classes=['car'], split=split)


@pytest.fixture
def config(scenes, tmp_path):
    """A run that trains and validates without cars, and tests on finding them."""
    config = make_config(scenes, tmp_path / 'run', max_iters=1)
    config.model.decode_head.num_classes = 18
    for loader, split in (('train_dataloader', 'train'), ('val_dataloader', 'train'), ('test_dataloader', 'anomaly')):
        held_out(config, loader, scenes, split)
    return config


def test_a_run_trains_and_validates_without_the_classes(config):
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0
    assert list(runner.train_loop.dataloader.dataset.metainfo['classes']).count('car') == 0


def test_the_head_must_have_as_many_classes_as_remain(config):
    config.model.decode_head.num_classes = 19
    with pytest.raises(ValueError, match=r'has 18 classes, but num_classes of decode_head is 19: set .*num_classes=18'):
        Runner.from_cfg(config).train()


def test_the_check_of_all_files_knows_the_datasets_own_ids(config, scenes, tmp_path):
    for one in check_samples(
        list(samples_of(HeldOutClassesDataset(cityscapes(scenes), ['car'], pipeline=PIPELINE), 18, 255))
    ):
        pytest.fail(str(one))
    mask = tmp_path / 'gtFine' / 'val' / 'x' / 'x_gtFine_labelTrainIds.png'
    image = tmp_path / 'leftImg8bit' / 'val' / 'x' / 'x_leftImg8bit.png'
    for path, array in ((mask, np.full((64, 128), 19, np.uint8)), (image, np.zeros((64, 128, 3), np.uint8))):
        path.parent.mkdir(parents=True)
        Image.fromarray(array).save(path)
    config.test_dataloader.dataset.dataset.data_root = str(tmp_path)
    with pytest.raises(ValueError, match=rf'{re.escape(str(mask))}: id 19 is none of those that the dataset knows'):
        Runner.from_cfg(config).test()


def test_a_missing_folder_of_the_dataset_is_named(config, tmp_path):
    config.test_dataloader.dataset.dataset.data_root = str(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match=r'none/leftImg8bit/val \(img_path of CityscapesDataset\) is no folder'):
        Runner.from_cfg(config).test()
