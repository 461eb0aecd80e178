"""A run that waits for its data says so once, with what to set."""

import re
from typing import Any

import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import TRANSFORMS

from mmseg_eomt.engine import DataWaitHook, data_wait


class _Clock:
    """A time that passes where a test says so."""

    now = 0.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


CLOCK = _Clock()


@TRANSFORMS.register_module()
class SlowLoading(BaseTransform):
    """Takes seconds per image."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def transform(self, results: dict) -> dict:
        CLOCK.pass_by(self.seconds)
        return results


class _Step(Hook):
    """An iteration takes a second."""

    def before_train_iter(self, *_: Any, **__: Any) -> None:
        CLOCK.pass_by(1)


@pytest.fixture
def warnings_of(small_config, monkeypatch, capsys):
    """What a run of twelve iterations of two images warns of; loading an image takes ``seconds``."""
    monkeypatch.setattr(data_wait, 'perf_counter', lambda: CLOCK.now)

    def run(seconds: float, **changes: Any) -> list[str]:
        config = small_config(max_iters=12, **{'train_cfg.val_interval': 4, **changes})
        config.default_hooks.data_wait.update(warmup=3, window=4)
        config.train_dataloader.dataset.pipeline.insert(1, dict(type='SlowLoading', seconds=seconds))
        config.val_dataloader.dataset.pipeline.insert(1, dict(type='SlowLoading', seconds=1000))
        runner = Runner.from_cfg(config)
        runner.register_hook(_Step(), priority='LOWEST')  # behind DataWaitHook
        runner.train()
        return re.findall('Training waits .*', capsys.readouterr().out)

    return run


def test_waiting_is_warned_of_once_with_the_fraction_and_what_to_set(warnings_of, tmp_path, monkeypatch):
    monkeypatch.setattr(data_wait, 'usable_cores', lambda: 8)
    [line] = warnings_of(0.5)
    assert line == (
        'Training waits for data 50% of the time (iterations 4 to 7, 2.00 s each): set train_dataloader.num_workers above 0 '
        '(8 cores for each process); keep decoded images, train_dataloader.dataset.pipeline.0.cache_dir=FOLDER '
        '(docs/train.md).'
    )


def test_neither_evaluation_nor_a_little_waiting_is_warned_of(warnings_of):
    assert warnings_of(0.1) == []  # 0.2 of 1.2 seconds


def test_what_is_set_already_is_not_advised(warnings_of, tmp_path, monkeypatch):
    monkeypatch.setattr(data_wait, 'usable_cores', lambda: 0)
    [line] = warnings_of(0.5, **{'train_dataloader.dataset.pipeline.0.cache_dir': str(tmp_path / 'images')})
    assert line.endswith('0 workers share 0 cores: use more cores.')
    assert list((tmp_path / 'images').glob('*.pixels'))


def test_workers_that_start_again_each_epoch_are_mentioned(small_config):
    loader = small_config(**{'train_dataloader.num_workers': 1}).train_dataloader
    advice = data_wait.remedies(Runner.build_dataloader(loader), loader)
    assert any('persistent_workers=True' in one for one in advice)


def test_the_advice_fits_wrapped_datasets_and_can_be_followed(small_config, tmp_path):
    config = small_config()
    inner = config.train_dataloader.dataset
    held_out = dict(type='HeldOutClassesDataset', dataset=inner, anomaly_classes=['car'], split='train')
    repeated = dict(type='RepeatDataset', dataset=held_out, times=2)
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[held_out, repeated])
    config = Config.fromstring(config.pretty_text, '.py')
    loader = Runner.build_dataloader(config.train_dataloader)
    options = re.findall(r'(\S+)=FOLDER', data_wait.remedies(loader, config.train_dataloader)[-1])
    places = 'datasets.0.dataset', 'datasets.1.dataset.dataset'
    assert options == [f'train_dataloader.dataset.{place}.pipeline.0.cache_dir' for place in places]
    config.merge_from_dict(dict.fromkeys(options, str(tmp_path / 'images')))
    loader = Runner.build_dataloader(config.train_dataloader)
    assert 'cache_dir' not in str(data_wait.remedies(loader, config.train_dataloader))
    assert loader.dataset[0]
    assert list((tmp_path / 'images').glob('*.pixels'))


@pytest.mark.parametrize('refused', [dict(to_float32=True), dict(backend_args=dict(backend='local'))])
def test_a_cache_that_would_be_refused_is_not_advised(small_config, refused):
    loader = small_config().train_dataloader
    loader.dataset.pipeline[0].update(refused)
    assert 'cache_dir' not in str(data_wait.remedies(Runner.build_dataloader(loader), loader))


@pytest.mark.parametrize('wrong', [dict(warmup=0), dict(window=0), dict(fraction=1.0)])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match='warmup and window are at least 1'):
        DataWaitHook(**wrong)
