"""tools/adapter.py as a user runs it."""

import signal
from pathlib import Path

import pytest
import torch
from conftest import KILLED, run_tool
from mmengine.runner import Runner
from safetensors.torch import load_file

from mmseg_eomt.whole import is_unfinished


@pytest.fixture
def config(lora) -> Path:
    """The config as the run has dumped it."""
    return next(Path(lora).parent.glob('*.py'))


@pytest.mark.slow
def test_info_tells_what_a_checkpoint_is(lora, base):
    log = run_tool('tools/adapter.py', 'info', lora).stdout
    lines = {line.split()[0]: line.split(None, 1)[1] for line in log.splitlines() if len(line.split()) > 1}
    assert 'LORA, without the base weights' in log
    assert lines['r'] == '16' and lines['lora_alpha'] == '32' and lines['iter'] == '2'
    assert lines['base'] == f'{base} (load_from)'
    weights = torch.load(lora, weights_only=True)['state_dict']
    adapters = {name: value for name, value in weights.items() if '.lora_' in name}
    count = sum(value.numel() for value in adapters.values())
    assert lines['adapters'].startswith(f'{count:,} numbers in 16 tensors (float32), {4 * count:,} bytes')
    assert 'plain checkpoint' in run_tool('tools/adapter.py', 'info', base).stdout
    assert 'base weights' in run_tool('tools/adapter.py', 'info', Path(lora).parent / 'adapters' / 'iter_2').stdout


def test_export_writes_what_the_hook_writes(lora, config, tmp_path):
    run_tool('tools/adapter.py', 'export', config, lora, tmp_path / 'out')
    ours, hooks = (
        load_file(folder / 'adapter_model.safetensors')
        for folder in (tmp_path / 'out', Path(lora).parent / 'adapters/iter_2')
    )
    assert ours.keys() == hooks.keys()
    assert all(torch.equal(value, hooks[name]) for name, value in ours.items())


def test_diff_tells_what_differs(small_config, lora, base, tmp_path):
    changes = {'custom_hooks.0.lora_alpha': 8, 'load_from': base, 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    log = run_tool('tools/adapter.py', 'diff', lora, f'{runner.work_dir}/iter_1.pth').stdout
    assert 'lora_alpha: a 32, b 8' in log
    assert 'base: the same' in log
    assert 'backbone adapters: ' in log and 'tensors differ, at most by' in log
    same = run_tool('tools/adapter.py', 'diff', lora, Path(lora).parent / 'adapters' / 'iter_2').stdout
    assert 'tensors differ' not in same
    assert 'equal: ' in same


@pytest.mark.slow
def test_a_merge_that_is_killed_leaves_no_file_of_that_name(lora, config, tmp_path):
    done = run_tool('python', '-c', KILLED, 'tools/adapter.py', 'merge', config, lora, tmp_path / 'out.pth', check=False)
    assert done.returncode == -signal.SIGKILL
    assert all(is_unfinished(path) for path in tmp_path.rglob('*') if path.is_file())


@pytest.mark.slow
def test_mistakes_end_with_one_sentence(lora, base, config, tmp_path):
    for arguments, message in (
        (['info', tmp_path / 'absent.pth'], 'absent.pth is not there'),
        (['export', config, base, tmp_path / 'out'], 'has no adapters'),
        (['merge', config, lora, base], 'is there already'),
    ):
        done = run_tool('tools/adapter.py', *arguments, check=False)
        assert done.returncode == 1
        assert message in done.stdout.splitlines()[-1]
        assert 'Traceback' not in done.stdout
