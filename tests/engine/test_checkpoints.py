"""A run that is killed at any moment has its last checkpoint, whole, and goes on from it."""

import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_tool
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmseg_eomt.engine.resume import last_whole_checkpoint
from mmseg_eomt.weights.checkpoint_io import is_whole


def killed(config: Config, config_file, by: int = signal.SIGKILL, **hook) -> Path:
    """Train with a hook of killed_while_saving.py to the end that it brings; the work directory."""
    config.custom_imports['imports'].append('killed_while_saving')
    config.custom_hooks.append(hook)
    done = run_tool('tools/train.py', config_file(config), check=False, PYTHONPATH=f'{ROOT}:{ROOT / "tests"}')
    assert done.returncode == -by, done.stdout[-3000:]
    return Path(config.work_dir)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_a_run_killed_while_it_writes_a_checkpoint_has_the_one_before(small_config, config_file, base, lora):
    def config() -> Config:
        return small_config(lora=lora, load_from=base, max_iters=6, **{'default_hooks.checkpoint.interval': 2})

    folder = killed(config(), config_file, signal.SIGXFSZ, type='KilledWhileSaving', at_iter=4)
    assert checkpoints(folder) == ['iter_2.pth']
    (half,) = folder.glob('.iter_4.pth.new-*/iter_4.pth')
    assert 0 < half.stat().st_size < (folder / 'iter_2.pth').stat().st_size

    log = run_tool('tools/train.py', config_file(config()), '--resume').stdout
    assert 'resumed epoch: 0, iter: 2' in log
    assert 'Iter(train) [6/6]' in log
    assert not list(folder.glob('.iter_4*'))  # what was unfinished is deleted


@pytest.mark.parametrize('best', [None, 'mIoU'], ids=['last', 'best'])
def test_the_next_checkpoint_is_whole_before_the_outdated_one_is_deleted(small_config, config_file, base, best):
    changes = {'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.max_keep_ckpts': 1}
    changes |= {'default_hooks.checkpoint.save_best': best, 'train_cfg.val_interval': 1}
    config = small_config(lora=True, load_from=base, max_iters=4, **changes)
    folder = killed(config, config_file, type='KilledWhileDeleting', best=bool(best))
    if best:
        assert [path.name for path in folder.glob('best_*.pth')] == ['best_mIoU_iter_2.pth']
    else:
        assert checkpoints(folder) == ['iter_2.pth']
        assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_2.pth')
    assert all(is_whole(path) for path in folder.glob('*.pth'))


def test_a_checkpoint_that_is_whole_but_not_named_yet_is_the_last_one(small_config, config_file):
    changes = {'default_hooks.checkpoint.interval': 1}
    folder = killed(small_config(max_iters=4, **changes), config_file, type='KilledBeforeNaming', at_iter=2)
    assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_1.pth')
    runner = SimpleNamespace(work_dir=str(folder), logger=logging.getLogger())
    assert last_whole_checkpoint(runner) == folder / 'iter_2.pth'
    (folder / 'last_checkpoint').touch()  # as if a user had chosen iter_1
    assert last_whole_checkpoint(runner) == folder / 'iter_1.pth'


def test_one_checkpoint_is_kept_where_one_is_asked_for(small_config):
    changes = {'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.max_keep_ckpts': 1}
    runner = Runner.from_cfg(small_config(**changes, **{'default_hooks.checkpoint.save_best': 'mIoU'}))
    runner.train()
    assert checkpoints(Path(runner.work_dir)) == ['best_mIoU_iter_3.pth', 'iter_3.pth']


def test_one_best_checkpoint_of_each_metric_is_kept(small_config):
    """aAcc gets better once, mIoU each time."""
    changes = {'default_hooks.checkpoint.save_best': ['mIoU', 'aAcc'], 'default_hooks.checkpoint.rule': 'greater'}
    runner = Runner.from_cfg(small_config(**changes, **{'train_cfg.val_interval': 1}))

    class Scores(Hook):
        def after_val_epoch(self, runner, metrics: dict) -> None:
            metrics.update(mIoU=runner.iter, aAcc=-runner.iter)

    runner.register_hook(Scores())
    runner.train()
    assert sorted(path.name for path in Path(runner.work_dir).glob('best_*')) == [
        'best_aAcc_iter_1.pth',
        'best_mIoU_iter_3.pth',
    ]


def test_a_checkpoint_hook_that_is_not_the_plugins_is_warned_of(small_config, capfd):
    config = small_config(max_iters=1)
    config.default_hooks.checkpoint.type = CheckpointHook
    Runner.from_cfg(config).train()
    assert "CheckpointHook is not mmseg_eomt's: a run that is killed while it saves may lose" in ''.join(capfd.readouterr())


def test_a_copied_run_does_not_delete_the_best_checkpoint_of_the_run_that_it_is_a_copy_of(small_config, tmp_path):
    changes = {'default_hooks.checkpoint.save_best': 'mIoU', 'train_cfg.val_interval': 1}
    Runner.from_cfg(small_config(max_iters=1, **changes)).train()
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    saved = torch.load(tmp_path / 'copy' / 'iter_1.pth', weights_only=True)
    saved['message_hub']['runtime_info']['best_score'] = -1.0  # so that the next one is better
    torch.save(saved, tmp_path / 'copy' / 'iter_1.pth')
    Runner.from_cfg(small_config(max_iters=2, name='copy', resume=True, **changes)).train()
    assert (tmp_path / 'copy' / 'best_mIoU_iter_2.pth').is_file()
    assert (tmp_path / 'run' / 'best_mIoU_iter_1.pth').is_file()


def test_whatever_the_toolbox_writes_to_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / 'iter_2.pth'
    get_file_backend(path).put(b'old', path)

    def no_disk_space(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'replace', no_disk_space)
    with pytest.raises(OSError, match='No space left'):
        get_file_backend(path).put(b'new', path)
    assert path.read_bytes() == b'old'
    assert [path.name for path in tmp_path.iterdir()] == ['iter_2.pth']


def test_a_run_killed_in_an_evaluation_goes_on_after_the_last_checkpoint(small_config, config_file, base):
    options = dict(lora=True, load_from=base, max_iters=3, **{'default_hooks.checkpoint.interval': 1})
    options['train_cfg.val_interval'] = 2
    folder = killed(small_config(**options), config_file, type='KilledWhileEvaluating')
    assert checkpoints(folder) == ['iter_1.pth', 'iter_2.pth']
    runner = Runner.from_cfg(small_config(resume=True, **options))
    runner.train()
    assert runner.iter == 3
