"""LoRA on a base that is sharded over the processes of a run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import same_every_time  # noqa: F401  registers a hook
import torch
from conftest import ROOT, free_port, run_tool
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model

from mmseg_eomt.adapters.names import adapter_names
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.sharding import check_shardable
from mmseg_eomt.models.losses import MaskClassificationLoss

STEPS = 20


@pytest.fixture
def recipe(small_config, base, tmp_path, monkeypatch):
    """Make the config of a run of so many processes: two images a step, nothing random."""
    for name in ('match', 'mask_losses'):  # which the hook replaces
        monkeypatch.setattr(MaskClassificationLoss, name, getattr(MaskClassificationLoss, name))

    def make(name: str, processes: int, **changes) -> Config:
        config = small_config(lora=True, max_iters=STEPS, name=name, load_from=base)
        config.train_dataloader.batch_size = 2 // processes
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='Resize', scale=(64, 64))]
        config.train_dataloader.dataset.pipeline = [*pipeline, dict(type='PackSegInputs')]
        for hook in config.custom_hooks:
            if hook['type'] == 'MaskAnnealingHook':
                hook.update(start_iters=[-2, -2], end_iters=[-1, -1])
        config.custom_hooks[0].update(shard_base=True, lora_dropout=0.0)
        config.custom_imports['imports'].append('same_every_time')
        config.custom_hooks.append(dict(type='KeptByEachRank', out=str(tmp_path)))
        config.merge_from_dict({'default_hooks.checkpoint.interval': STEPS // 2, **changes})
        return config

    return make


@pytest.fixture
def two_processes(config_file):
    """Train in two processes; what they print."""

    def train(config: Config, *args: str) -> str:
        paths = f'{ROOT}:{ROOT / "tests"}'
        done = run_tool('tools/dist_train.sh', config_file(config), 2, *args, PORT=free_port(), PYTHONPATH=paths)
        return done.stdout

    return train


def differing(given: Path, expected: Path) -> float:
    """Largest difference between two checkpoints, over the largest value of each tensor."""
    one, two = (torch.load(path, weights_only=True)['state_dict'] for path in (given, expected))
    assert one.keys() == two.keys()
    return max(
        float((value - two[name]).abs().max() / two[name].abs().max().clamp(min=1e-12)) for name, value in one.items()
    )


def test_two_processes_with_half_of_the_base_each_train_as_one_does(recipe, two_processes, tmp_path):
    one, two = recipe('one', 1), recipe('two', 2)
    runner = Runner.from_cfg(one)
    runner.train()
    log = two_processes(two)

    last = f'iter_{STEPS}.pth'
    assert differing(Path(two.work_dir) / last, Path(one.work_dir) / last) < 1e-5
    assert 'is sharded over 2 processes' in log
    whole = {n: p.numel() * 4 for n, p in runner.model.named_parameters() if '.blocks.' in n and not p.requires_grad}
    for rank in (0, 1):
        kept = torch.load(tmp_path / f'kept_{rank}.pth')
        assert kept.keys() == whole.keys()
        assert sum(kept.values()) == sum(whole.values()) / 2

    model = init_model(two, str(Path(two.work_dir) / last), device='cpu')
    assert adapter_names(model)
    assert inference_model(model, np.zeros((64, 64, 3), np.uint8)).pred_sem_seg.data.shape == (1, 64, 64)

    half = f'iter_{STEPS // 2}.pth'
    for name, start in (('one_to_two', one), ('two_to_one', two)):
        config = recipe(name, 2 if name == 'one_to_two' else 1, resume=True)
        Path(config.work_dir).mkdir()
        shutil.copy(Path(start.work_dir) / half, Path(config.work_dir) / half)
        (Path(config.work_dir) / 'last_checkpoint').write_text(str(Path(config.work_dir) / half))
        if name == 'one_to_two':
            assert f'iter: {STEPS // 2}' in two_processes(config, '--resume')
        else:
            Runner.from_cfg(config).train()
        assert differing(Path(config.work_dir) / last, Path(one.work_dir) / last) < 1e-5


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(save='full'), "takes save='trainable', got 'full'"),
        (dict(base_precision='4bit'), "takes base_precision='fp32' or 'bf16', got '4bit'"),
        (dict(peft=dict(init_lora_weights='pissa')), 'drop init_lora_weights'),
    ],
)
def test_what_needs_the_whole_base_is_refused(small_config, base, changes, words):
    config = small_config(lora=True, load_from=base)
    hook = LoRAHook(shard_base=True, **changes)
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError, match=words):
        check_shardable(runner, hook.make_config(), hook.save, hook.base_precision)


@pytest.mark.parametrize(('name', 'value'), [('EMAHook', dict(type='EMAHook')), ('compile', True)])
def test_what_does_not_go_with_shards_is_refused(small_config, base, name, value):
    config = small_config(lora=True, load_from=base)
    if name == 'compile':
        config.compile = value
    else:
        config.custom_hooks.append(value)
    with pytest.raises(ValueError, match=f'shard_base does not go with {name}'):
        check_shardable(Runner.from_cfg(config), None, 'trainable', 'fp32')
