"""The runs that are killed, what they leave behind, and how that is compared."""

import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import make_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from faults.killer import EvaluationWatch, FileWatch, number_of
from mmseg_eomt.whole import is_unfinished

MAX_ITERS = 8
LORA = {'custom_hooks.0.save_adapter': True, 'custom_hooks.0.lora_dropout': 0.2}
AVERAGE = dict(type='EMAHook', momentum=0.1)
SCENARIOS: dict[str, dict[str, Any]] = {
    'LoRA': dict(lora=True, **LORA),
    'LoRA, accumulated, one checkpoint kept': {
        'lora': True,
        'optim_wrapper.accumulative_counts': 2,
        'default_hooks.checkpoint.interval': 3,  # no multiple of 2
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        **LORA,
    },
    'LoRA, averaged': dict(lora=True, average=True, **LORA),
    'full': {},
    'full, accumulated': {'optim_wrapper.accumulative_counts': 2, 'default_hooks.checkpoint.interval': 3},
    'full, averaged, one checkpoint kept': {'average': True, 'default_hooks.checkpoint.max_keep_ckpts': 1},
}


def config_of(scenario: str, scenes: Path, base: Path, work_dir: Path, resume: bool) -> Config:
    """The config of a run that starts from ``base``, or with ``resume`` goes on where it was."""
    changes = dict(SCENARIOS[scenario])
    lora, average = changes.pop('lora', False), changes.pop('average', False)
    usual = {'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 3, 'load_from': str(base), 'resume': resume}
    config = make_config(scenes, work_dir, lora, MAX_ITERS, **{**usual, **changes})
    if average:
        config.custom_hooks.append(AVERAGE)
    return config


def train(config: Config, watch: dict | None = None, evaluation: int | None = None) -> dict[str, Any]:
    """Run to the end, or until killed; what happened on the way.

    Args:
        config: Of :func:`config_of`.
        watch: Where to be killed, of :class:`~.killer.FileWatch`.
        evaluation: Where to be killed, of :class:`~.killer.EvaluationWatch`.
    """
    files = FileWatch(Path(config.work_dir), **(watch or {}))
    evaluations = EvaluationWatch(evaluation)
    runner = Runner.from_cfg(config)
    runner.register_hook(NoteStart(), priority='LOWEST')
    runner.register_hook(evaluations, priority='LOWEST')
    runner.train()
    return dict(moments=files.moments, evaluations=evaluations.seen)


class NoteStart(Hook):
    """Writes where a run starts, beside its work directory."""

    def before_train(self, runner: Runner) -> None:
        with open(f'{runner.work_dir}-starts', 'a') as file:
            file.write(f'{runner.iter}\n')


def last_number(work_dir: Path, name: str) -> int | None:
    """The last number in a file beside a work directory; None if there is none."""
    path = Path(f'{work_dir}-{name}')
    return int(path.read_text().split()[-1]) if path.is_file() else None


def checkpoints(work_dir: Path) -> dict[int, Path]:
    """The checkpoints of a run, by iteration."""
    return {number_of(path): path for path in work_dir.glob('iter_*.pth')}


def is_intact(checkpoint: Path) -> bool:
    """Whether a checkpoint is there to its last byte."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def half_written(work_dir: Path, reference: Path) -> Iterator[str]:
    """The files of final names that are not what the uninterrupted run writes."""
    for number, path in checkpoints(work_dir).items():
        if not is_intact(path):
            yield f'{path} is torn'
        elif (reference / path.name).is_file():
            yield from map(f'{path.name}: {{}}'.format, different(path, reference / path.name))
        elif number == MAX_ITERS:
            yield f'{path} should not be there'
    for folder in (work_dir / 'adapters').glob('*'):
        if not is_unfinished(folder.relative_to(work_dir)):
            yield from _half_folder(folder, reference / 'adapters' / folder.name)
    table, last = work_dir / 'adapters.txt', work_dir / 'last_checkpoint'
    if table.is_file() and table.read_text() != (reference / table.name).read_text():
        yield f'{table} is torn'
    if last.is_file() and not (last.read_text().startswith(f'{work_dir}/iter_') and last.read_text().endswith('.pth')):
        yield f'{last} is torn: {last.read_text()!r}'


def _half_folder(folder: Path, expected: Path) -> Iterator[str]:
    names = {path.name for path in expected.glob('*')}
    if {path.name for path in folder.glob('*')} != names:
        yield f'{folder} has {sorted(path.name for path in folder.glob("*"))}, not {sorted(names)}'
    elif any(content_of(folder / name) != content_of(expected / name) for name in names):
        yield f'{folder} is not that of the uninterrupted run'


def different(one: Path, other: Path) -> list[str]:
    """What differs between two checkpoints but their times: weights, optimizer, schedules, losses, random numbers."""
    loaded = [torch.load(path, map_location='cpu', weights_only=True) for path in (one, other)]
    for checkpoint in loaded:
        scalars = checkpoint.pop('message_hub')['log_scalars']
        checkpoint['losses'] = {name: list(scalars[name].data[0]) for name in scalars if name.startswith('train/loss')}
        checkpoint['meta'] = {name: checkpoint['meta'].get(name) for name in ('iter', 'epoch', 'dataset_meta', 'adapter')}
    return list(itertools.islice(_differences(*loaded), 5))


def _differences(one: Any, other: Any, name: str = '') -> Iterator[str]:
    if type(one) is not type(other):
        yield f'{name}: {type(one).__name__}, not {type(other).__name__}'
    elif isinstance(one, dict):
        for key in one.keys() | other.keys():
            if key not in one or key not in other:
                yield f'{name}.{key} is {"missing" if key in other else "new"}'
            else:
                yield from _differences(one[key], other[key], f'{name}.{key}')
    elif isinstance(one, (list, tuple)) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other)):
            yield from _differences(*pair, f'{name}.{number}')
    elif isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield f'{name} differs'
    elif one != other:
        yield f'{name}: {json.dumps([one, other], default=str)[:200]}'


def content_of(path: Path) -> tuple:
    """A file's bytes; of safetensors what is in it, since its header has no order."""
    data = path.read_bytes()
    if path.suffix != '.safetensors':
        return (data,)
    start = 8 + int.from_bytes(data[:8], 'little')
    return json.loads(data[8:start]), data[start:]
