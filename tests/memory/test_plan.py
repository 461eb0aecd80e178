"""Predicted peaks of memory, and the settings that are found to fit."""

import argparse
import re
import shlex

import pytest
import torch
from conftest import ROOT, small_recipe
from mmengine.config import Config, DictAction
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DefaultScope

from mmseg_eomt.commands import plan
from mmseg_eomt.memory import predict
from mmseg_eomt.memory.faked import build
from mmseg_eomt.memory.iterations import scaled
from mmseg_eomt.memory.report import announce, option_line, too_little
from mmseg_eomt.memory.search import CONTEXT_BYTES, GAPS, Setting, changed, effective_batch, fastest, options_for, settings
from mmseg_eomt.models import losses

RECIPE = 'eomt_lora_cityscapes.py'


def total(config: Config, device: str = 'cuda', **changes) -> int:
    return sum(predict(changed(config, changes), device, evaluate=False).training.values())


@pytest.fixture(scope='module')
def config() -> Config:
    return small_recipe(RECIPE, 64)


def test_weights_gradients_and_optimizer_are_counted_exactly(config):
    config = changed(config, {'custom_hooks': []})
    parts = predict(config, 'cpu', evaluate=False).training
    model_bytes = 4 * sum(map(torch.Tensor.numel, _model(config).parameters()))
    assert parts['gradients'] == model_bytes  # accumulated ones are there all the time
    assert 0 <= parts['optimizer'] - 2 * model_bytes < 4096  # and a count of steps per parameter
    assert 0 <= parts['weights'] - model_bytes < 4096  # and buffers


def _model(config: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmseg'):
        return build(config)


def test_what_saves_memory_is_predicted_to_save_it(config):
    plain = total(config)
    for saving in (
        {'model.vit.with_cp': True},
        {'model.decode_head.masks_with_cp': True},
        {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'},
    ):
        assert total(config, **saving) < plain


def test_every_setting_keeps_images_and_steps(config):
    steps = config.train_cfg.max_iters / config.optim_wrapper.accumulative_counts
    found = list(settings(config))
    assert {s.batch * s.accumulation for s in found} == {16} and len({s.batch for s in found}) == 5
    assert {s.recomputed for s in found} == {'nothing', 'masks', 'all'}
    for setting in found:
        new = changed(config, options_for(config, setting))
        assert effective_batch(new) == 16
        assert new.train_cfg.max_iters / new.optim_wrapper.accumulative_counts == steps
        assert new.auto_scale_lr.base_batch_size == setting.batch
    with pytest.raises(ValueError, match='3 GPUs do not divide the 16 images'):
        next(settings(config, gpus=3))


def test_iterations_of_schedules_and_hooks_are_scaled_and_fractions_are_not(config):
    hooks = [dict(type='MaskAnnealingHook', start_iters=[0.25, 100], end_iters=[0.5, 200])]
    config = changed(config, {'custom_hooks': hooks})
    options = options_for(config, Setting(1, 16, 'nothing', 'fp32', None))
    assert options['custom_hooks.0.start_iters'] == [0.25, 400] and options['custom_hooks.0.end_iters'] == [0.5, 800]
    assert option_line(options).startswith('--cfg-options train_dataloader.batch_size=1 ')


def test_what_counts_epochs_or_never_happens_is_not_scaled(config):
    loop = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1, _delete_=True)
    changes = {
        'train_cfg': loop,
        'param_scheduler': dict(type='MultiStepLR', milestones=[1, 2], _delete_=True),
        'default_hooks.checkpoint': dict(interval=2, _delete_=True),
        'custom_hooks': [dict(type='MaskAnnealingHook', start_iters=[-2, 0], end_iters=[-1, 4])],
    }
    assert scaled(changed(config, changes), 4) == {'custom_hooks.0.end_iters': [-1, 16]}
    never = changed(config, {'default_hooks.checkpoint.interval': -1})
    assert 'train_cfg.max_iters' in scaled(never, 4) and 'default_hooks.checkpoint.interval' not in scaled(never, 4)


def test_schedules_of_all_kinds_and_averages_are_scaled_or_refused(config):
    schedule = dict(type='MultiStepLR', milestones=(100, 200), begin=10, by_epoch=False, _delete_=True)
    changes = {
        'train_cfg.dynamic_intervals': [(0, 10), (100, 5)],
        'param_scheduler': schedule,
        'custom_hooks': [dict(type='EMAHook', momentum=0.19, begin_iter=3)],
    }
    options = scaled(changed(config, changes), 2)
    assert options['train_cfg.dynamic_intervals'] == [[0, 20], [200, 10]]
    assert options['param_scheduler.milestones'] == [200, 400] and options['param_scheduler.begin'] == 20
    assert options['custom_hooks.0.momentum'] == 0.1 and options['custom_hooks.0.begin_iter'] == 6
    decaying = changed(config, {'param_scheduler': [dict(type='ExponentialLR', gamma=0.81, by_epoch=False)]})
    assert scaled(decaying, 2)['param_scheduler.0.gamma'] == 0.9
    other = changed(config, {'custom_hooks': [dict(type='EMAHook', ema_type='MomentumAnnealingEMA')]})
    assert scaled(other, 1) == {}
    with pytest.raises(ValueError, match='an EMAHook whose MomentumAnnealingEMA'):
        scaled(other, 2)


def test_an_amp_config_stays_buildable_in_fp32(config):
    wrapper = {f'optim_wrapper.{k}': v for k, v in dict(type='AmpOptimWrapper', dtype='float16', loss_scale=512.0).items()}
    amp = changed(config, wrapper)
    new = changed(amp, options_for(amp, Setting(16, 1, 'nothing', 'fp32', 'fp32'))).optim_wrapper
    assert (new.type, new.dtype) == ('AmpOptimWrapper', 'float32') and new.dtype in AmpOptimWrapper.valid_dtypes


def test_the_printed_line_is_a_setting_that_fits(config, config_file, in_process):
    file = config_file(changed(config, {'work_dir': 'run', 'custom_hooks': []}))
    printed = in_process(plan.main, file, '--gpu-memory', 0.66, '--precision', 'fp32')
    line = re.search(r'^--cfg-options .*$', printed, re.M)[0]
    options = argparse.ArgumentParser()
    options.add_argument('--cfg-options', nargs='+', action=DictAction)
    chosen = changed(config, options.parse_args(shlex.split(line)).cfg_options)
    peaks = re.search(r'^\| sum +\| +(\S+) \| +(\S+) \|$', printed, re.M).groups()
    assert effective_batch(chosen) == 16 and max(map(int, peaks)) <= 660 * (1 - GAPS) - CONTEXT_BYTES / 1e6


def test_a_config_without_a_model_or_a_crop_is_refused(config, in_process, tmp_path):
    (tmp_path / 'empty.py').write_text('a = 1\n')
    assert 'The config has no model' in in_process(plan.main, tmp_path / 'empty.py', check=False)
    config = changed(config, {'train_pipeline': [], 'train_dataloader.dataset.pipeline': [], 'model.vit.img_size': None})
    with pytest.raises(ValueError, match='does not say how large training images are'):
        predict(config)


def test_a_run_that_is_asked_to_logs_its_peak_and_draws_nothing_for_it(config):
    lines: list[str] = []

    class Log:
        info = warning = lines.append

    class Run:
        cfg, logger, model = changed(config, {'plan_memory': True}), Log, torch.nn.Linear(2, 2)

    state, assign = torch.get_rng_state(), losses.assign
    announce(Run)
    assert re.search(r'Predicted peak of memory: 0\.\d GB in training', lines[0])
    assert torch.equal(torch.get_rng_state(), state) and losses.assign is assign
    Run.cfg = config
    announce(Run)
    assert len(lines) == 1  # on a CPU not by default
    assert 'python tools/plan.py my.py --gpu-memory 8' in too_little(9.0, 8.0, 'my.py')


def test_another_head_of_the_toolbox_is_planned_too(config):
    head = dict(type='FCNHead', in_channels=32, in_index=0, channels=16, num_classes=19, _delete_=True)
    config = changed(config, {'model.vit.num_joint_blocks': 0, 'model.decode_head': head, 'custom_hooks': []})
    parts = predict(config).training
    with pytest.raises(ValueError, match=r'No setting fits 0\.6 GB: the smallest .* needs 0\.\d GB'):
        fastest(config, 0.6e9, precisions=('fp32',))
    assert parts['backbone'] and parts['losses'] and 'mask module' not in parts


def test_the_page_names_what_is_assumed():
    text = (ROOT / 'docs/memory.md').read_text(encoding='utf-8')
    assert f'{CONTEXT_BYTES / 1e9:.1f} GB' in text and f'{GAPS:.0%}'.replace('%', ' %') in text
