"""Runs with outliers, and what becomes of linear, cosine and negative class heads in checkpoints."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_config
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, load_checkpoint
from mmseg.apis import init_model
from mmseg.registry import TRANSFORMS

from mmseg_eomt.adapters import merge

HEAD = 'model.decode_head'
COSINE = {f'{HEAD}.type': 'EoMTAnomalyHead', f'{HEAD}.cosine_head': dict(scale=None, margin=0.2)}
NEGATIVE = {f'{HEAD}.type': 'EoMTAnomalyHead', f'{HEAD}.negative_class': True}
OUTLIERS = {f'{HEAD}.loss_outlier': dict(type='OutlierLoss')}
CLASS_HEAD = 'decode_head.class_head'


class _Logged(Hook):
    """Note what each iteration logs."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict) -> None:
        margin = runner.message_hub.log_scalars.get('train/margin')
        logged = {} if margin is None else dict(margin=margin.current())
        self.seen.append({name.removeprefix('decode.'): value.item() for name, value in outputs.items()} | logged)


@TRANSFORMS.register_module()
class BlackSquareOutlier(BaseTransform):
    """A black square that is labelled as an outlier, in about every other image."""

    def transform(self, results: dict) -> dict:
        if np.random.rand() < 0.5:
            results['gt_seg_map'][20:40, 20:40] = 254
            results['img'][20:40, 20:40] = 0
        return results


def pasting(config: Config) -> Config:
    """With one image a batch, and outliers in some."""
    pipeline = config.train_dataloader.dataset.pipeline
    outlier = dict(type='BlackSquareOutlier')
    config.train_dataloader.dataset.pipeline = [*pipeline[:-1], outlier, pipeline[-1]]
    config.train_dataloader.batch_size = 1
    return config


def train(config: Config) -> tuple[Runner, list[dict[str, float]]]:
    runner, logged = Runner.from_cfg(config), _Logged()
    runner.register_hook(logged, priority='LOW')
    runner.train()
    return runner, logged.seen


def with_margin(lora: bool) -> list[dict]:
    first = dict(type='LoRAHook') if lora else dict(type='MaskAnnealingHook')
    return [first, dict(type='MarginWarmupHook', fraction=0.5)]


def state_of(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def cosine(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slim checkpoint of adapters and a cosine head, trained for two iterations on the linear one of ``base``."""
    changes = {**COSINE, **OUTLIERS, 'load_from': base, 'custom_hooks': with_margin(lora=True)}
    runner, _ = train(make_config(scenes, tmp_path_factory.mktemp('runs') / 'cosine', True, 2, **changes))
    return f'{runner.work_dir}/iter_2.pth'


def test_a_run_with_and_without_outliers_in_its_batches_logs_how_far_apart_scores_are(small_config, base):
    changes = {f'{HEAD}.type': 'EoMTAnomalyHead', **OUTLIERS, 'load_from': base, 'max_iters': 6}
    _, logged = train(pasting(small_config(**changes)))

    assert len(logged) == 6 and {'outlier_score' in line for line in logged} == {True, False}
    for line in logged:
        losses = {name for name in line if name.endswith('loss_outlier')}
        assert losses == {'loss_outlier', 'd0.loss_outlier', 'd1.loss_outlier'} and 'inlier_score' in line
        summed = sum(value for name, value in line.items() if 'loss' in name and name != 'loss')
        assert line['loss'] == pytest.approx(summed, rel=1e-5)
        # an RbA score is below 0, so that α = 0 asks nothing of inliers
        assert (line['loss_outlier'] > 10) == ('outlier_score' in line)


def test_training_starts_from_a_linear_head_with_the_scales_of_its_weights(small_config, base, capfd):
    runner, logged = train(small_config(**COSINE, load_from=base, custom_hooks=with_margin(lora=False), max_iters=4))

    start, scales = state_of(base), runner.model.decode_head.class_head.scales
    length = (start['decode_head.norm.weight'].square().sum() + start['decode_head.norm.bias'].square().sum()).sqrt()
    assert torch.allclose(scales, start[f'{CLASS_HEAD}.weight'][:-1].norm(dim=1) * length, rtol=1e-5)
    dropped = start[f'{CLASS_HEAD}.bias'][:-1].abs().max()
    spread = f'{scales.min():.3g} to {scales.max():.3g}'
    line = next(line for line in capfd.readouterr().out.splitlines() if 'linear → cosine' in line)
    assert 'adapted' in line and f'scale {spread}, biases up to {dropped:.3g} are dropped' in line
    assert [line['margin'] for line in logged] == pytest.approx([0, 0.1, 0.2, 0.2])


def test_a_slim_checkpoint_with_a_cosine_head_predicts_as_it_was(small_config, cosine):
    saved = state_of(cosine)
    assert f'{CLASS_HEAD}.scales' in saved and 'backbone.patch_embed.proj.weight' not in saved

    model = init_model(small_config(**COSINE), cosine, device='cpu')
    for name, value in saved.items():
        if name.startswith(CLASS_HEAD):
            assert torch.equal(model.state_dict()[name], value), name

    changes = {**COSINE, **OUTLIERS, 'load_from': cosine, 'custom_hooks': with_margin(lora=True)}
    runner = Runner.from_cfg(small_config(lora=True, name='test', **changes))
    runner.test()
    assert torch.equal(runner.model.decode_head.class_head.scales, saved[f'{CLASS_HEAD}.scales'])


def test_a_run_with_a_cosine_head_that_is_resumed_is_the_run_that_was_never_stopped(small_config, base):
    changes = {**COSINE, **OUTLIERS, 'load_from': base, 'custom_hooks': with_margin(lora=True)}
    changes |= {'max_iters': 4, 'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 4}
    whole, expected = train(pasting(small_config(lora=True, name='whole', **changes)))
    (Path(whole.work_dir) / 'iter_4.pth').unlink()
    (Path(whole.work_dir) / 'last_checkpoint').write_text('iter_2.pth')
    resumed, seen = train(pasting(small_config(lora=True, name='whole', resume=True, **changes)))

    assert seen == expected[2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_lora_run_with_a_cosine_head_starts_from_adapters_with_a_linear_one(small_config, lora, capfd):
    changes = {**COSINE, 'load_from': lora, 'custom_hooks': with_margin(lora=True)}
    runner, _ = train(small_config(lora=True, max_iters=1, **changes))
    weight, scales = state_of(lora)[f'{CLASS_HEAD}.weight'], runner.model.decode_head.class_head.scales
    assert torch.allclose(scales / scales[0], (weight[:-1].norm(dim=1) / weight[0].norm()), rtol=1e-4)
    assert 'class_head linear → cosine' in capfd.readouterr().out


def test_uno_starts_from_linear_heads_with_a_new_row_for_outliers(small_config, base, lora, capfd):
    runner, _ = train(pasting(small_config(**NEGATIVE, load_from=base, max_iters=2)))
    assert 'randomly initialised  class_head.negative (the class of outliers)' in capfd.readouterr().out
    assert {f'{CLASS_HEAD}.negative.weight', f'{CLASS_HEAD}.weight'} <= state_of(f'{runner.work_dir}/iter_2.pth').keys()

    runner, _ = train(pasting(small_config(lora=True, name='lora', **NEGATIVE, load_from=lora, max_iters=1)))
    assert 'randomly initialised: class_head.negative' in capfd.readouterr().out
    again = small_config(lora=True, name='test', **NEGATIVE, load_from=f'{runner.work_dir}/iter_1.pth')
    Runner.from_cfg(again).test()


@pytest.mark.parametrize('changes', [COSINE, NEGATIVE], ids=['cosine', 'negative'])
def test_heads_trained_alone_predict_from_a_slim_checkpoint_on_the_linear_base(small_config, base, changes):
    heads = ['decode_head.class_head', 'decode_head.mask_head']
    hooks = [dict(type='LoRAHook', target_modules=[], trainable_modules=heads)]
    config = small_config(**changes, **OUTLIERS, load_from=base, custom_hooks=hooks, max_iters=2)
    runner, _ = train(pasting(config))
    checkpoint = f'{runner.work_dir}/iter_2.pth'

    assert not any(name.startswith('backbone.blocks') for name in state_of(checkpoint))
    model = init_model(small_config(**changes), checkpoint, device='cpu')
    for name, value in runner.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


LINEAR_HEAD = 'has a linear class head, and the model {}: set neither cosine_head nor negative_class in decode_head'


@pytest.mark.parametrize('checkpoint', ['base', 'lora'])
@pytest.mark.parametrize(
    ('changes', 'asked'), [(COSINE, 'a cosine class head'), (NEGATIVE, 'a class head with a class of outliers')]
)
def test_a_linear_head_is_not_to_predict_in_another_kind(small_config, request, checkpoint, changes, asked):
    path = request.getfixturevalue(checkpoint)
    refused = pytest.raises(ValueError, match=LINEAR_HEAD.format(asked))
    with refused:
        init_model(small_config(**changes), path, device='cpu')
    with refused:
        Runner.from_cfg(small_config(lora=checkpoint == 'lora', **changes, load_from=path, name='test')).test()


def resume(config: Config, path: str) -> Callable:
    work_dir = Path(config.work_dir)
    work_dir.mkdir(parents=True)
    (work_dir / 'iter_1.pth').symlink_to(path)
    config.resume = True
    return Runner.from_cfg(config).train


def test_a_run_with_a_linear_head_is_not_resumed_with_another_kind(small_config, base):
    with pytest.raises(ValueError, match=LINEAR_HEAD.format('a cosine class head')):
        resume(small_config(**COSINE), base)()


@pytest.mark.parametrize('lora', [True, False])
@pytest.mark.parametrize('purpose', ['train', 'test'])
def test_a_cosine_head_is_not_read_into_a_linear_one(small_config, cosine, tmp_path, lora, purpose):
    path = cosine
    if not lora:
        model = init_model(small_config(**COSINE), cosine, device='cpu')
        path = str(tmp_path / 'plain.pth')
        merge(model)
        torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    config = small_config(lora=lora, load_from=path)
    with pytest.raises(ValueError, match=r"set type='EoMTAnomalyHead' and cosine_head=dict\(…\) in decode_head"):
        getattr(Runner.from_cfg(config), purpose)()


def test_merged_and_loaded_by_hand_a_cosine_head_is_the_same(small_config, cosine, tmp_path):
    config = small_config(**COSINE)
    model = init_model(config, cosine, device='cpu')
    merge(model)
    torch.save(dict(meta={}, state_dict=model.state_dict()), tmp_path / 'plain.pth')
    other = init_model(config, device='cpu')
    load_checkpoint(other, str(tmp_path / 'plain.pth'))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_the_margins_hook_asks_for_a_head_with_a_margin(small_config):
    config = small_config(custom_hooks=with_margin(lora=False))
    with pytest.raises(ValueError, match='MarginWarmupHook needs a model with'):
        Runner.from_cfg(config).train()
