"""The commands, as a user runs them: real processes, real files."""

import hashlib
import sys
from importlib import import_module
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
from conftest import ROOT, free_port, run_tool
from mmengine.runner import CheckpointLoader
from packaging.version import Version

from mmseg_eomt.commands.cli import COMMANDS

STOCK_TRAIN = Path(mmseg.__file__).parent / '.mim' / 'tools' / 'train.py'


def weights(work_dir: Path, iteration: int) -> dict[str, torch.Tensor]:
    return CheckpointLoader.load_checkpoint(str(work_dir / f'iter_{iteration}.pth'))['state_dict']


def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob('*.png'))}


def test_train_and_test_run_the_installed_toolboxs_scripts(small_config, config_file):
    config = small_config(lora=True, max_iters=2)
    file = config_file(config)

    log = run_tool('tools/train.py', file).stdout
    assert 'of all parameters train' in log
    assert 'Iter(train) [2/2]' in log

    log = run_tool('tools/test.py', file, Path(config.work_dir) / 'iter_2.pth').stdout
    assert 'Load checkpoint from' in log
    assert 'mIoU' in log


def test_the_stock_script_trains_our_config_with_nothing_of_ours_but_the_config(small_config, config_file, tmp_path):
    config = small_config(lora=True, max_iters=2)
    file = config_file(config)
    done = run_tool(STOCK_TRAIN, file, PYTHONPATH=str(ROOT))
    assert 'of all parameters train' in done.stdout
    assert any('.lora_' in name for name in weights(Path(config.work_dir), 2))


@pytest.mark.parametrize('lora', [False, True], ids=['full', 'lora'])
def test_two_processes_end_with_identical_parameters(small_config, config_file, base, tmp_path, lora):
    """Each process writes its own parameters at the end; the data, and so the gradients, differ between them."""
    config = small_config(lora=lora, max_iters=3, load_from=base)
    config.custom_imports['imports'].append('save_each_rank')
    config.custom_hooks.append(dict(type='SaveEachRank', out=str(tmp_path)))
    extra = [str(ROOT), str(ROOT / 'tests')]

    log = run_tool('tools/dist_train.sh', config_file(config), 2, PORT=free_port(), PYTHONPATH=':'.join(extra)).stdout

    assert 'Iter(train) [3/3]' in log
    first, second = (torch.load(tmp_path / f'rank_{rank}.pth', weights_only=True) for rank in (0, 1))
    assert first['parameters'].keys() == second['parameters'].keys()
    assert all(torch.equal(value, second['parameters'][name]) for name, value in first['parameters'].items())
    assert first['images'] != second['images']
    if Version(torch.__version__) >= Version('2.7'):  # PyTorch 2.6 gives its threads no names
        assert 'pt_gloo_runloop' in first['threads'] and 'pt_gloo_runloop' in second['threads']
    for rank in (0, 1):  # one that is left at the very end can abort the process
        assert 'pt_gloo_runloop' not in (tmp_path / f'left_{rank}.txt').read_text()
    saved = weights(Path(config.work_dir), 3)
    assert all(torch.equal(value, first['parameters'][name]) for name, value in saved.items() if name in first['parameters'])
    if lora:
        assert not [name for name in saved if name.startswith('backbone.') and '.lora_' not in name]
        config.train_cfg.max_iters = 4
        command = ('tools/dist_train.sh', config_file(config), 2, '--resume')
        log = run_tool(*command, PORT=free_port(), PYTHONPATH=':'.join(extra)).stdout
        assert 'iter: 3' in log and 'Iter(train) [4/4]' in log
        again = [torch.load(tmp_path / f'rank_{rank}.pth', weights_only=True)['parameters'] for rank in (0, 1)]
        assert all(torch.equal(value, again[1][name]) for name, value in again[0].items())
        assert any('.lora_B' in name and value.abs().max() > 0 for name, value in first['parameters'].items())


@pytest.mark.slow
def test_dist_test_predicts_as_one_process_does(small_config, config_file, tmp_path):
    config = small_config(max_iters=1)
    file = config_file(config)
    run_tool('tools/train.py', file)
    checkpoint = Path(config.work_dir) / 'iter_1.pth'
    run_tool('tools/test.py', file, checkpoint, '--out', tmp_path / 'one')
    (tmp_path / 'two').mkdir()  # only the first process of the toolbox makes it, and the second may write sooner
    run_tool('tools/dist_test.sh', file, checkpoint, 2, '--out', tmp_path / 'two', PORT=free_port())
    one, two = digest(tmp_path / 'one'), digest(tmp_path / 'two')
    assert len(one) == 4
    assert one == two


@pytest.mark.parametrize('script', ['tools/dist_train.sh', 'tools/dist_test.sh'])
def test_the_launchers_say_how_they_are_called(script):
    done = run_tool(script, check=False)
    assert done.returncode == 2
    assert f'{script} CONFIG' in done.stdout
    assert 'MASTER_ADDR' in done.stdout


def test_the_data_maker_writes_the_same_files_for_the_same_seed(tmp_path):
    sizes = ('--train', 2, '--val', 1, '--height', 64, '--width', 128)
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        run_tool('tools/make_street_scenes.py', tmp_path / name, *sizes, '--seed', seed, cold=name == 'a')
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert not set(digest(tmp_path / 'a').values()) & set(digest(tmp_path / 'c').values())
    assert len(digest(tmp_path / 'a')) == 2 * 2 * (2 + 1)


def test_the_scenes_hold_several_classes_ignored_pixels_and_two_looks(scenes):
    labels = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in sorted(scenes.glob('gtFine/train/*/*_labelTrainIds.png'))]
    ids = set(np.unique(np.stack(labels)).tolist())
    assert {0, 1, 2, 10, 13, 255} <= ids <= {*range(19), 255}
    brightness = {
        look: np.mean([cv2.imread(str(p)).mean() for p in scenes.glob(f'leftImg8bit/train/{look}/*.png')])
        for look in ('day', 'dusk')
    }
    assert brightness['dusk'] < 0.8 * brightness['day']


def test_every_script_is_a_command_of_the_package_and_every_command_a_script():
    assert {path.stem for path in (ROOT / 'tools').glob('[!_]*.py')} == set(COMMANDS)
    for name, place in COMMANDS.items():
        module, function = place.split(':')
        assert callable(getattr(import_module(f'mmseg_eomt.commands.{module}'), function))
        assert f"run('{name}')" in (ROOT / 'tools' / f'{name}.py').read_text()


def test_without_what_it_needs_a_script_ends_with_a_sentence():
    done = run_tool(sys.executable, '-S', 'tools/predict.py', check=False)  # -S: no packages
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1
