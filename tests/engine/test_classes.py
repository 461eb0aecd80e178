"""Data of other classes than the model's, or of another order of them, is neither evaluated nor trained on."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS

NAMES = list(CityscapesDataset.METAINFO['classes'])
SWAPPED = [NAMES[1], NAMES[0], *NAMES[2:]]
CALLED = [name.replace(' ', '_').title() for name in NAMES]


def with_classes(config: Config, classes: Sequence[str], *splits: str) -> Config:
    """The same files under other names of classes."""
    for split in splits:
        dataset = config[f'{split}_dataloader'].dataset
        suffixes = dict(img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')
        metainfo = dict(classes=classes, palette=[[i] * 3 for i in range(len(classes))])
        dataset.update(type='BaseSegDataset', metainfo=metainfo, **suffixes)
    return config


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (NAMES[:5], 'The validation data has 5 classes, but num_classes of decode_head is 19'),
        (SWAPPED, "The validation data's classes are not those of the training data: class 0 is 'sidewalk' and not 'road'"),
        ([*NAMES[:-1], 'bike'], "class 18 is 'bike' and not 'bicycle'. Give val_dataloader.dataset the same classes"),
    ],
    ids=['number', 'order', 'name'],
)
def test_validation_data_of_other_classes_than_training_is_refused(small_config, classes, message):
    runner = Runner.from_cfg(with_classes(small_config(max_iters=1), classes, 'val'))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('wrapped', [False, True], ids=['plain', 'concatenated'])
@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (NAMES[:5], r"The test data's classes are not those of .*iter_1.pth: there are 5 and not 19"),
        (
            SWAPPED,
            r"The test data's classes are not those of .*iter_1.pth: class 0 is 'sidewalk' and not 'road', class 1 is",
        ),
    ],
    ids=['number', 'order'],
)
def test_test_data_of_other_classes_than_the_checkpoints_is_refused(small_config, base, classes, message, wrapped):
    config = with_classes(small_config(load_from=base), classes, 'test')
    if wrapped:
        dataset = config.test_dataloader.dataset
        config.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(config).test()


@pytest.mark.parametrize('split', ['val', 'test'])
def test_the_number_of_classes_is_compared_where_no_names_are_known(small_config, base, tmp_path, split):
    torch.save(torch.load(base, weights_only=True)['state_dict'], tmp_path / 'bare.pth')
    config = with_classes(small_config(load_from=str(tmp_path / 'bare.pth')), NAMES[:5], 'val', 'test')
    with pytest.raises(ValueError, match=r'data has 5 classes, but num_classes of decode_head is 19: set the classes of'):
        getattr(Runner.from_cfg(config), split)()


def test_a_run_is_not_resumed_with_its_classes_in_another_order(small_config):
    Runner.from_cfg(small_config(max_iters=1)).train()
    config = with_classes(small_config(max_iters=2, resume=True), SWAPPED, 'train', 'val')
    with pytest.raises(
        ValueError, match=r"The training data's classes are not those of .*iter_1.pth: class 0 is 'sidewalk'"
    ):
        Runner.from_cfg(config).train()


def test_a_new_run_may_start_from_a_checkpoint_of_other_classes(small_config, base):
    runner = Runner.from_cfg(with_classes(small_config(max_iters=1, load_from=base), SWAPPED, 'train', 'val'))
    runner.train()
    assert runner.iter == 1


@DATASETS.register_module()
class CitiesOfAnotherCountry(CityscapesDataset):
    pass


@pytest.mark.parametrize(
    'changed',
    [
        lambda config: with_classes(config, CALLED, 'val', 'test'),
        lambda config: with_classes(config, np.array(NAMES), 'val', 'test'),
        lambda config: config.merge_from_dict({'test_dataloader.dataset.type': 'CitiesOfAnotherCountry'}),
        lambda config: with_classes(config, [*NAMES[:-1], 'bike'], 'val', 'test').update(check_class_names=False),
    ],
    ids=['spelling', 'array', 'subclass', 'asked for'],
)
def test_the_same_classes_are_evaluated_however_they_are_named(small_config, base, changed, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')  # which has no text for an array
    config = small_config(load_from=base, max_iters=1)
    changed(config)
    expected = Runner.from_cfg(small_config(load_from=base, name='expected')).test()
    assert Runner.from_cfg(config).test()['mIoU'] == expected['mIoU']
    Runner.from_cfg(config).train()


def test_classes_in_an_array_are_trained_on_and_saved_so_that_they_are_read(small_config, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')
    runner = Runner.from_cfg(with_classes(small_config(max_iters=1), np.array(NAMES), 'train', 'val'))
    runner.train()
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    assert saved['meta']['dataset_meta']['classes'] == NAMES
