"""Cached features train as the frozen backbone would on the same views, and a cache is used for nothing else."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, SMALL_ARCH, free_port, run_tool
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, loops

from mmseg_eomt.data.color_jitter import EoMTColorJitter
from mmseg_eomt.data.sizes import bytes_of
from mmseg_eomt.engine.feature_store import FeatureStore, check_room

HEAD_ONLY = dict(type='LoRAHook', target_modules=[], trainable_modules=['decode_head'])
LATER_BLOCK = dict(type='LoRAHook', r=4, lora_dropout=0.1, peft=dict(layers_to_transform=[1]))
ROTARY = {'model.vit.arch': dict(_delete_=True, **SMALL_ARCH, rope_theta=100.0, qkv_bias='qv')}
WORKERS_ARE_SKIPPED = hasattr(loops._InfiniteDataloaderIterator, 'skip_iter')  # onedl-mmengine


class _Note(Hook):
    """Note losses, and count how often the first block is run, and images are augmented."""

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[str] = []
        self.encoded = 0  # images
        self.encoded_in_training = 0

    def before_train(self, runner: Runner) -> None:
        runner.model.backbone.blocks[0].register_forward_pre_hook(self._count)

    def _count(self, _block: Any, args: tuple) -> None:
        self.encoded += len(args[0])

    def before_train_epoch(self, runner: Runner) -> None:
        self.encoded_in_training = -self.encoded

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict) -> None:
        self.losses.append(outputs['loss'].item())
        self.images += [Path(sample.img_path).name for sample in data_batch['data_samples']]

    def after_train_epoch(self, runner: Runner) -> None:
        self.encoded_in_training += self.encoded


class _Stop(Hook):
    """End a run as Ctrl-C does."""

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        if runner.iter + 1 == 3:
            raise KeyboardInterrupt


@pytest.fixture
def frozen_config(small_config, base, tmp_path):
    """Make a config whose four images have two views each, in batches of two; five iterations are two epochs and a half."""

    def make(name: str, adapted: dict = HEAD_ONLY, cache: dict | None = None, **changes) -> Config:
        hooks = [adapted, dict(type='FeatureCacheHook', **{'dir': str(tmp_path / 'features'), 'views': 2, **(cache or {})})]
        defaults = {'max_iters': 5, 'load_from': base, 'train_cfg.val_begin': 10, 'train_dataloader.dataset.indices': 4}
        config = small_config(name=name, custom_hooks=hooks, **{**defaults, **changes})
        pipeline = config.train_dataloader.dataset.pipeline
        steps = [dict(type='RandomFlip', prob=0.5), dict(type='EoMTColorJitter')]
        config.train_dataloader.dataset.pipeline = [*pipeline[:-1], *steps, pipeline[-1]]
        return config

    return make


def uncached(config: Config) -> Config:
    """The same run on the same views, each time read and encoded again."""
    config.custom_hooks.pop()
    loader = config.train_dataloader
    loader.dataset = dict(type='FixedViews', dataset=loader.dataset, views=2)
    loader.sampler = dict(type='ViewSampler', sampler=loader.sampler)
    return config


def train(config: Config, *hooks: Hook) -> tuple[Runner, _Note]:
    runner, note = Runner.from_cfg(config), _Note()
    for hook in (note, *hooks):
        runner.register_hook(hook)
    try:
        runner.train()
    except KeyboardInterrupt:
        assert hooks
    runner.train_dataloader._iterator = runner.train_loop.dataloader_iterator = None  # ends worker processes at once
    return runner, note


def assert_same(one: Runner, other: Runner) -> None:
    for (name, value), wanted in zip(one.model.state_dict().items(), other.model.state_dict().values()):
        assert torch.equal(value, wanted), name


def caches(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in tmp_path.glob('features/*/key.json'))


@pytest.mark.parametrize(
    ('adapted', 'changes'), [(HEAD_ONLY, {}), (LATER_BLOCK, {'load_from': None, **ROTARY})], ids=['head', 'later block']
)
def test_exact_features_train_bit_for_bit_as_the_backbone_does(frozen_config, adapted, changes):
    """The backbone's blocks, or those before the first one that is adapted, run before training alone."""
    changes = {'train_dataloader.batch_size': 1, 'max_iters': 9, **changes}
    cached, note = train(frozen_config('cached', adapted, dict(dtype='float32'), **changes))
    plain, expected = train(uncached(frozen_config('plain', adapted, **changes)))

    assert note.losses == expected.losses
    assert note.images == expected.images
    assert_same(cached, plain)
    assert (note.encoded, note.encoded_in_training) == (2 * 4 + 1, 0)  # one to know the size
    assert expected.encoded_in_training == 9


def test_a_run_that_finds_its_cache_encodes_nothing(frozen_config, tmp_path, capfd):
    """Other learning rates and another seed of the run need no other features; files that are gone are computed again."""
    _, first = train(frozen_config('first'))
    log = ''.join(capfd.readouterr())
    (folder,) = caches(tmp_path)
    _, note = train(frozen_config('again', **{'optim_wrapper.optimizer.lr': 1e-5}))
    (folder / 'view1_00000.pt').unlink()  # of a run that was killed before it had written all
    _, rest = train(frozen_config('completed'))

    assert first.encoded == 2 * 4 + 1 and first.encoded_in_training == 0
    assert note.encoded == 0 and len(note.losses) == 5
    assert rest.encoded == 4 + 1
    assert rest.losses == first.losses
    assert caches(tmp_path) == [folder]
    assert 'Each of 4 images has 2 augmented views, drawn once from the seed 0' in log
    assert 'epoch e trains on view e modulo 2' in log and '2 of 2 blocks' in log


def test_training_reads_no_images_and_evaluation_uses_none_of_the_features(frozen_config, scenes, monkeypatch):
    augmented, transform = [], EoMTColorJitter.transform
    monkeypatch.setattr(EoMTColorJitter, 'transform', lambda self, results: augmented.append(1) or transform(self, results))
    runner, note = train(frozen_config('run', **{'train_cfg.val_begin': 1}))
    assert len(augmented) == 2 * 4 + 1
    assert note.encoded == len(augmented) + len(runner.val_dataloader.dataset) * 2  # two windows each
    metrics = runner.message_hub.get_scalar('val/mIoU').current()

    plain = Runner.from_cfg(frozen_config('test', load_from=f'{runner.work_dir}/iter_5.pth'))
    assert plain.test()['mIoU'] == pytest.approx(metrics)
    assert 'forward' not in {*vars(runner.model.backbone), *vars(runner.model.data_preprocessor)}


def test_half_precision_rounds_features_by_a_two_thousandth_in_half_of_the_room(frozen_config, tmp_path):
    stores, losses = {}, []
    for dtype in ('float32', 'float16'):
        before = caches(tmp_path)
        _, note = train(frozen_config(dtype, cache=dict(dtype=dtype)))
        (folder,) = set(caches(tmp_path)) - set(before)
        stores[dtype] = FeatureStore(folder, 4, 2, dtype)
        losses.append(torch.tensor(note.losses))
    exact, rounded = (store.content(1, 0) for store in stores.values())

    error = (rounded['tensors'][0].float() - exact['tensors'][0]).abs()
    assert rounded['tensors'][0].dtype == torch.float16
    assert 0 < (error / exact['tensors'][0].abs().clamp(min=1e-4)).max() <= 2**-11
    assert torch.allclose(*losses, rtol=1e-2) and not torch.equal(*losses)
    assert torch.equal(exact['fields']['gt_sem_seg'], rounded['fields']['gt_sem_seg'])


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.skipif(WORKERS_ARE_SKIPPED, reason='onedl'))])
def test_a_resumed_run_goes_on_with_the_views_that_it_would_have_had(frozen_config, workers):
    changes = {
        'default_hooks.checkpoint.interval': 2,
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
    }
    whole, expected = train(frozen_config('whole', **changes))
    train(frozen_config('stopped', **changes), _Stop())
    resumed, note = train(frozen_config('stopped', resume=True, **changes))

    assert note.losses == expected.losses[2:]
    assert_same(resumed, whole)


def test_a_loop_by_epochs_shows_a_view_in_each(frozen_config):
    def config(name: str) -> Config:
        made = frozen_config(name, cache=dict(dtype='float32'))
        made.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_begin=10)
        made.train_dataloader.update(batch_size=1, sampler=dict(type='DefaultSampler', shuffle=True))
        return made

    _, note = train(config('cached'))
    _, expected = train(uncached(config('plain')))
    assert len(note.losses) == 12
    assert note.losses == expected.losses


def test_a_cache_of_anything_else_is_not_used_and_named(frozen_config, tmp_path, scenes, capfd):
    train(frozen_config('first', max_iters=1))
    (stale,) = caches(tmp_path)
    configs = {name: frozen_config(name, max_iters=1) for name in ('weights', 'data', 'files')}
    configs['views'] = frozen_config('views', cache=dict(views=1), max_iters=1)
    configs['weights'].load_from = None
    configs['data'].train_dataloader.dataset.pipeline[-2].update(brightness=0.5)
    mask = sorted(scenes.glob('gtFine/train/*/*_labelTrainIds.png'))[0]
    time = mask.stat().st_mtime_ns

    for number, (name, config) in enumerate(configs.items()):
        os.utime(mask, ns=(0, time + (name == 'files')))
        capfd.readouterr()
        _, note = train(config)
        log = ''.join(capfd.readouterr())
        assert note.encoded > 1
        assert len(caches(tmp_path)) == 2 + number
        assert re.search(rf'{stale} holds features of other {name} \(.* MB\) and is not used', log)
    os.utime(mask, ns=(0, time))


@pytest.mark.slow
def test_two_processes_compute_a_part_each_and_train_on_all(frozen_config, config_file, tmp_path):
    weights = []
    for make in (lambda config: config, uncached):
        config = make(frozen_config(make.__name__.strip('<>'), cache=dict(dtype='float32'), max_iters=4))
        config.train_dataloader.batch_size = 1
        run_tool('tools/dist_train.sh', config_file(config), 2, PORT=free_port(), PYTHONPATH=str(ROOT))
        weights.append(torch.load(Path(config.work_dir) / 'iter_4.pth', weights_only=True)['state_dict'])
    assert len(list(tmp_path.glob('features/*/view*.pt'))) == 2
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize(
    ('hooks', 'words'),
    [
        ([dict(type='MaskAnnealingHook')], r'backbone\.\w+ is trained'),
        ([dict(type='LoRAHook')], r'backbone\.blocks\.0\.attn\.qkv\.lora_A\S* is trained: freeze the backbone'),
    ],
    ids=['trained', 'adapted'],
)
def test_a_backbone_that_trains_from_its_beginning_is_refused(frozen_config, tmp_path, hooks, words):
    config = frozen_config('run')
    config.custom_hooks = [*hooks, config.custom_hooks[-1]]
    with pytest.raises(ValueError, match=words):
        train(config)
    assert not caches(tmp_path)


def test_a_cache_that_would_not_fit_is_refused_before_anything_is_written(frozen_config, tmp_path):
    with pytest.raises(ValueError, match=r'would need 0\.\d MB in .* and may hold max_size=0\.01MB: raise it'):
        train(frozen_config('run', cache=dict(max_size='0.01MB')))
    assert not (tmp_path / 'features').exists()
    with pytest.raises(ValueError, match=r'would need [\d,.]+ GB in .* GB are free: lower views'):
        check_room(tmp_path, 10**18, '9999999TB')


def test_a_damaged_file_is_named_before_training(frozen_config, tmp_path):
    train(frozen_config('first', max_iters=1))
    (file,) = tmp_path.glob('features/*/view1_00000.pt')
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf'{file} of the feature cache cannot be read: delete it'):
        train(frozen_config('second', max_iters=1))


def test_images_of_different_sizes_are_refused(frozen_config):
    config = frozen_config('run')
    config.train_dataloader.batch_size = 1
    config.model.data_preprocessor.update(size=None, size_divisor=16)
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[2] = dict(type='RandomResize', scale=(64, 32), ratio_range=(1.0, 2.0))
    with pytest.raises(ValueError, match='Images of different sizes cannot be cached: crop and pad them'):
        train(config)


def test_arguments_are_checked(frozen_config):
    for cache, words in (
        (dict(dtype='int8'), "dtype is one of ['float16', 'float32'], got 'int8'"),
        (dict(views=0), 'views must be at least 1, got 0'),
        (dict(max_size='much'), "max_size is a size such as '500MB', '50GB' or '1.5TB', got 'much'"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            Runner.from_cfg(frozen_config('run', cache=cache))
    assert bytes_of('1.5TB') == 1.5e12
