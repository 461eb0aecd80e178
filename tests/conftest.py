"""Made data, a small model's config and the tools as a user runs them."""

import atexit
import copy
import functools
import gc
import importlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported; inherited by the processes that tests start

import mmengine.config.config
import pytest
import torch
import warm
from mmengine.config import Config
from mmengine.runner import Runner

import mmseg_eomt  # noqa: F401  registers models and hooks
from mmseg_eomt.adapters import merge
from mmseg_eomt.commands.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'tests' / 'data'
RUN_NUMBERS = itertools.count()
# runs a tool that is killed half through the first file that it writes
KILLED = """
import os, runpy, signal, sys, safetensors.torch, torch
def save(content, path, **kwargs):
    with open(path, 'wb') as file:
        file.write(bytes(100))
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = safetensors.torch.save_file = save
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as for a script
runpy.run_path(sys.argv[0], run_name='__main__')
"""
# A run prints and writes its config five times, and each time half of a second goes into the layout of its lines.
mmengine.config.config.FormatCode = lambda text, **_: (text, True)
# mmengine collects garbage at every dataset, and what torch and transformers have imported is 0.3 s of it.
gc.freeze()
atexit.register(gc.unfreeze)
SMALL_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, layer_scale_init=1.0)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def reference(name: str) -> dict:
    """A file of tests/data."""
    return torch.load(DATA / name, weights_only=True)


def relative_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((given - expected).detach().abs().max() / expected.detach().abs().max())


def merged(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """An adapted model's weights with the adapters in them, as evaluation alone has them."""
    model = copy.deepcopy(model)
    merge(model)
    return model.state_dict()


@functools.cache
def warm_folder() -> Path:
    """A folder with a ``python`` whose processes begin with the libraries imported (tests/warm.py)."""
    folder = tempfile.mkdtemp(prefix='warm-')
    atexit.register(shutil.rmtree, folder)
    atexit.register(warm.start(folder))
    return Path(folder)


def environment(cold: bool = False, **env: str) -> dict[str, str]:
    """Of a process whose ``python`` is this one, and a warm one unless it is to be ``cold``."""
    folders = [] if cold or sys.platform != 'linux' else [warm_folder()]
    path = os.pathsep.join(map(str, [*folders, Path(sys.executable).parent, env.pop('PATH', os.environ['PATH'])]))
    return {**os.environ, 'PATH': path, **env}


def run(command: list[str], folder: Path, env: dict[str, str], timeout: int = 540) -> subprocess.CompletedProcess:
    """Run a command; what it prints to either stream is in ``stdout``."""
    command[0] = shutil.which(command[0], path=env['PATH']) or command[0]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(command, cwd=folder, env=env, timeout=timeout, **streams)


def run_tool(*args: object, check: bool = True, cold: bool = False, **env: str) -> subprocess.CompletedProcess:
    """Run a command at the top of the repository as a user would; its output is in ``stdout``.

    A ``.py`` file is given to a warm Python, which has imported the libraries, or to a cold one.
    """
    command = [str(arg) for arg in args]
    if command[0].endswith('.py'):
        command.insert(0, 'python')
    done = run(command, ROOT, environment(cold, **env))
    if check and done.returncode:
        pytest.fail(f'{" ".join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}')
    return done


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture):
    """Run a command's ``main`` in this process: its output, and its last words where it fails as expected."""

    def call(main: Callable, *args: object, check: bool = True) -> str:
        status = None
        try:
            main([*map(str, args)])
        except SystemExit as error:
            status = error.code
        assert (status is None) == check, status
        return f'{capsys.readouterr().out}{status}'

    return call


def main_of(tool: str) -> Callable:
    """The function that a script of ``tools`` runs, for :func:`in_process`."""
    module, function = COMMANDS[Path(tool).stem].split(':')
    return getattr(importlib.import_module(f'mmseg_eomt.commands.{module}'), function)


def free_port() -> str:
    """One for a launcher, which nobody listens at."""
    with socket.socket() as listener:
        listener.bind(('', 0))
        return str(listener.getsockname()[1])


def run_line(line: str, folder: Path, **env: str) -> str:
    """Run a line of a page in a folder, as a shell with this Python does; its output."""
    done = run(['bash', '-c', line], folder, environment(**env), timeout=300)
    if done.returncode:
        pytest.fail(f'{line} ended with {done.returncode}:\n{done.stdout[-6000:]}')
    return done.stdout


def small_recipe(name: str, side: int) -> Config:
    """A recipe of ``configs`` with a small model and pictures of a side, for data that others put in."""
    config = Config.fromfile(ROOT / 'configs' / name)
    config.model.vit.update(arch=SMALL_ARCH, pretrained=None, num_joint_blocks=2, img_size=(side, side))
    config.model.decode_head.update(num_queries=12, num_points=128)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].update(num_workers=0, persistent_workers=False)
        for step in config[loader].dataset.pipeline:
            step.update({key: (side, side) for key in ('crop_size', 'size', 'scale') if key in step})
    config.model.test_cfg.mode = 'slide'
    return config


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of synthetic scenes, 64×128, in the Cityscapes layout."""
    out = tmp_path_factory.mktemp('scenes')
    run_tool('tools/make_street_scenes.py', out, '--train', 4, '--val', 2, '--height', 64, '--width', 128)
    return out


def small_options(scenes: Path, work_dir: Path, max_iters: int) -> dict:
    """Settings that make the tiny Cityscapes configs small enough for a test."""
    scale, crop = (128, 64), (64, 64)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=crop),
        dict(type='PackSegInputs'),
    ]
    test_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    options = {
        'work_dir': str(work_dir),
        # mmengine names loggers by the second, and one of an earlier test would write to that test's captured output
        'experiment_name': f'test_{next(RUN_NUMBERS)}',
        'load_from': None,
        'randomness': dict(seed=0),
        'model.vit.arch': dict(_delete_=True, **SMALL_ARCH),
        'model.vit.img_size': crop,
        'model.decode_head.num_queries': 12,
        'model.decode_head.num_points': 128,
        'test_pipeline': test_pipeline,  # that of init_model
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline': pipeline,
        'train_dataloader.dataset.data_root': str(scenes),
        'train_cfg.max_iters': max_iters,
        'train_cfg.val_interval': max_iters,
        'default_hooks.checkpoint.interval': max_iters,
        'default_hooks.checkpoint.save_best': None,
        'default_hooks.logger.interval': 1,
    }
    for split in ('val', 'test'):
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
        options[f'{split}_dataloader.dataset.data_root'] = str(scenes)
        options[f'{split}_dataloader.dataset.pipeline'] = test_pipeline
    return options


def make_config(scenes: Path, work_dir: Path, lora: bool = False, max_iters: int = 3, **changes) -> Config:
    """A config of a few iterations of a small model."""
    config = Config.fromfile(ROOT / 'configs' / ('eomt_lora_tiny_cityscapes.py' if lora else 'eomt_tiny_cityscapes.py'))
    config.merge_from_dict(small_options(scenes, work_dir, max_iters))
    spans = dict(start_iters=[0, max_iters], end_iters=[max_iters, 2 * max_iters])
    for hook in config.custom_hooks:
        if hook['type'] == 'MaskAnnealingHook':
            hook.update(spans)
    config.merge_from_dict(changes)
    return config


@pytest.fixture
def small_config(scenes: Path, tmp_path: Path):
    """Make a config: ``small_config(lora=True, max_iters=3, name='run', **changes)``; its work directory has that name."""

    def make(lora: bool = False, max_iters: int = 3, name: str = 'run', **changes) -> Config:
        return make_config(scenes, tmp_path / name, lora, max_iters, **changes)

    return make


@pytest.fixture(scope='session')
def base(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a plain model whose masks are annealed, trained for one iteration; to be read only."""
    config = make_config(scenes, tmp_path_factory.mktemp('runs') / 'base', max_iters=1)
    config.custom_hooks[0].update(start_iters=[-2, -2], end_iters=[-1, -1])
    runner = Runner.from_cfg(config)
    runner.train()
    return f'{runner.work_dir}/iter_1.pth'


@pytest.fixture(scope='session')
def lora(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slim checkpoint of adapters on :func:`base`, trained for two iterations and exported too; to be read only."""
    changes = {'custom_hooks.0.save_adapter': True, 'load_from': base}
    runner = Runner.from_cfg(make_config(scenes, tmp_path_factory.mktemp('runs') / 'lora', True, 2, **changes))
    runner.train()
    return f'{runner.work_dir}/iter_2.pth'


@pytest.fixture
def config_file(tmp_path: Path):
    """Write a config to a file, for the tools."""

    def write(config: Config) -> Path:
        path = tmp_path / f'{Path(config.work_dir).name}.py'
        config.dump(path)
        return path

    return write
