"""What a run with ``--resume`` goes on from, and whether it can."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from mmseg_eomt.engine.optimizer_steps import OptimizerStepsLR
from mmseg_eomt.engine.runner_state import asked_to_resume, checkpoint_path, is_resuming, segmentor_of, set_resume, set_seed
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.weights.checkpoint_io import is_whole
from mmseg_eomt.whole import is_unfinished

# how the steps of an optimizer are computed, not what they are
IMPLEMENTATION = {'params', 'foreach', 'fused', 'capturable', 'differentiable'}
OR_A_NEW_RUN = 'or start a new run from it without --resume'


def settle_resume(runner: Runner) -> None:
    """Let ``--resume`` go on from this run's last whole checkpoint, or start the run where it has none.

    mmengine would resume from ``load_from``, which is the other run that this one started from. Only a checkpoint of this
    run that ``load_from`` names is resumed as asked. A run that was killed while it wrote a checkpoint goes on from the one
    before. The first process decides for all.
    """
    if not asked_to_resume(runner):
        return
    chosen = [_find(runner) if is_main_process() else None]
    broadcast_object_list(chosen)
    last, asked = chosen[0], checkpoint_path(runner)
    set_resume(runner, last)
    if last is None:
        start = f'load_from={asked}' if asked else 'the weights that init_cfg names'
        runner.logger.info(f'There is no checkpoint to resume in {runner.work_dir}: the run starts from {start}.')
        return
    if asked and asked != last:
        runner.logger.info(f'Resuming this run from {last}; load_from={asked} was where it started.')
    seed = _meta(last).get('seed')
    given = set_seed(runner, seed) if type(seed) is int else None  # mmengine does so once the data loaders are built
    if given not in (None, seed):
        runner.logger.warning(f'The run to resume had the seed {seed}, which is used; the config has {given}.')


def _find(runner: Runner) -> str | None:
    work_dir, asked = Path(runner.work_dir), checkpoint_path(runner)
    for pattern in ('.*.pth.*', '.last_checkpoint.*', 'adapters/.iter_*'):
        for path in filter(is_unfinished, work_dir.glob(pattern)):
            runner.logger.info(f'{path} is deleted: a killed run was writing it.')
            shutil.rmtree(path, ignore_errors=True)
    if asked and work_dir.resolve() == Path(asked).resolve().parent and _number(Path(asked)) is not None:
        return asked
    last = last_whole_checkpoint(runner)
    return None if last is None else str(last)


def last_whole_checkpoint(runner: Runner) -> Path | str | None:
    """The run's last checkpoint, or the last one before it that is whole; what is skipped is warned of."""
    work_dir, named = Path(runner.work_dir), _named(runner)
    if isinstance(named, str):
        return named
    folders = {work_dir, named.parent if named else work_dir}  # CheckpointHook's out_dir may be another
    checkpoints = (path for folder in folders for path in folder.glob('*.pth'))
    numbered = {path: number for path in checkpoints if (number := _number(path)) is not None}
    found = sorted(numbered, key=lambda path: numbered[path], reverse=True)
    limit = _number(named) if named else None
    if named and limit is not None:
        after = [path for path in found if numbered[path] > limit and _is_later(path, named, work_dir / 'last_checkpoint')]
        found = [*after, named, *(path for path in found if numbered[path] < limit)]
    elif named:
        found = [named, *found]
    for path in found:
        if is_whole(path):
            return path
        runner.logger.warning(f'{path} is no whole checkpoint (was the run killed while it wrote it?) and is skipped.')
    return None


def _is_later(path: Path, named: Path, file: Path) -> bool:
    """Whether a run was killed when it had written a checkpoint, and not yet its name into the file ``last_checkpoint``.

    The time in the checkpoint tells it from one that an earlier run has left, also where the files were copied.
    """
    times = [str(_meta(checkpoint).get('time', '')) for checkpoint in (path, named)]
    return path.stat().st_mtime_ns > file.stat().st_mtime_ns and times[0] >= times[1]


def _meta(path: str | Path) -> dict[str, Any]:
    """Of a checkpoint, without reading its weights; what is wrong with a file is said where it is loaded."""
    try:
        return dict(torch.load(path, map_location='cpu', mmap=True, weights_only=True)['meta'])
    except Exception:
        return {}


def _named(runner: Runner) -> Path | str | None:
    """What the file ``last_checkpoint`` names: an existing file, an address, or nothing."""
    file = Path(runner.work_dir) / 'last_checkpoint'
    if not file.is_file():
        return None
    text = file.read_text(encoding='utf-8', errors='replace').strip()
    if re.match(r'\w+://', text):
        return text
    for folder, name in ((file.parent, re.split(r'[/\\]', text)[-1]), ('', text)):  # the work directory may have moved
        try:
            path = Path(folder, name)
            if name and path != file and path.is_file():
                return path
        except (OSError, ValueError):  # too long for a path, say
            continue
    runner.logger.warning(f'{file} names no checkpoint that is there ({text[:80]!r}): the last by number is taken.')
    return None


def _number(path: Path) -> int | None:
    """The iteration or epoch in the name of a checkpoint that a run has written."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
    return int(found.group(1)) if found else None


def check_resumable(runner: Runner, checkpoint: dict) -> None:
    """Make sure that a checkpoint which is to be resumed holds all of the run's state, and fits the run.

    Raises:
        ValueError: If it does not, with what is wrong.
    """
    if not is_resuming(runner):
        return
    source = str(checkpoint_path(runner))
    absent = [part for part in ('message_hub', 'optimizer') if part not in checkpoint]
    if absent:
        raise ValueError(f'{source} holds no {absent[-1]} to resume: to start from it, leave out --resume.')
    noted = checkpoint.get('meta')
    meta: dict[str, Any] = noted if isinstance(noted, dict) else {}
    for name in ('iter', 'epoch'):
        number = meta.get(name)
        if type(number) is not int or number < 0:
            raise ValueError(f'{source} cannot be resumed: its meta gives {number!r} as {name}, not a number from 0 on.')
    if type(meta.get('seed', 0)) is not int and meta['seed'] is not None:
        raise ValueError(f'{source} cannot be resumed: its meta gives {meta["seed"]!r} as seed, not a number.')
    meta.pop('config', None)  # mmengine would run it as Python code
    fault = _fault_of_history(checkpoint['message_hub'])
    if fault:
        raise ValueError(f'{source} cannot be resumed: its message_hub, the history of the run, {fault}.')


def _fault_of_history(hub: Any) -> str | None:
    """What is wrong with the part of a message hub that is used without a further look."""
    for part in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub, dict) or not isinstance(hub.get(part), dict):
            return f'has no {part}'
    for name, value in hub['runtime_info'].items():
        if name == 'keep_ckpt_ids':
            fits = isinstance(value, list) and all(type(number) is int for number in value)
        elif name.startswith('best_ckpt'):
            fits = value is None or isinstance(value, str)
        else:
            fits = not str(name).startswith('best_score') or isinstance(value, (int, float)) or hasattr(value, '__float__')
        if not fits:
            return f'gives {value!r} as {name}'
    return None


def check_fits_run(runner: Runner, checkpoint: dict) -> None:
    """Compare a checkpoint that :func:`check_resumable` has passed with the length and the optimizer of the run.

    mmengine would train nothing, or let the numbers of the checkpoint's optimizer win silently.

    Raises:
        ValueError: If it is beyond the end, or its optimizer is another one, with what differs.
    """
    if is_resuming(runner):
        source = str(checkpoint_path(runner))
        _check_length(runner, checkpoint['meta'], source)
        _check_optimizer(runner, checkpoint['optimizer'], source)
        if isinstance(runner.param_schedulers, list):  # there are others with several optimizers
            _check_schedules(runner, checkpoint.get('param_schedulers'), source)


def _check_length(runner: Runner, meta: dict[str, Any], source: str) -> None:
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    name, unit = ('epoch', 'max_epochs') if by_epoch else ('iter', 'max_iters')
    done, end = meta[name], getattr(runner, unit)
    if done > end:
        raise ValueError(f'{source} is at {name} {done:,}, beyond the end of this run: train_cfg.{unit} is {end:,}.')
    if done == end:
        runner.logger.info(
            f'{source} is at the end of this run ({name} {done} of {end}): nothing is left to train. To evaluate it, use '
            f'tools/test.py; to train longer, raise train_cfg.{unit}.'
        )
    elif by_epoch and meta['iter'] != done * len(runner.train_dataloader):
        runner.logger.warning(
            f'{source} was written within an epoch (at iteration {meta["iter"]}, and an epoch has '
            f'{len(runner.train_dataloader)}): the epoch is trained from its start.'
        )


def _check_optimizer(runner: Runner, saved: Any, source: str) -> None:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return
    own, kind = wrapper.optimizer.param_groups, type(wrapper.optimizer).__name__
    fields: dict[str, Any] = saved if isinstance(saved, dict) else {}
    groups: Any = fields.get('param_groups')
    states: Any = fields.get('state')
    if not _is_state(groups, states):
        raise ValueError(f'{source} cannot be resumed: the state of its optimizer is damaged.')
    sizes, own_sizes = ([len(group['params']) for group in side] for side in (groups, own))
    if sizes != own_sizes:
        raise ValueError(
            f'{source} has an optimizer of {sum(sizes)} parameters in {len(sizes)} group(s), and the run one of '
            f'{sum(own_sizes)} in {len(own_sizes)}, or they are grouped otherwise: set optim_wrapper, and what is trained, '
            f'as in the run to resume, {OR_A_NEW_RUN}.'
        )
    for number, (group, expected) in enumerate(zip(groups, own)):
        differing = _differing(group, expected)
        if differing:
            raise ValueError(
                f'{source} was trained with another optimizer than this {kind}: {differing} (group {number}). Set '
                f'optim_wrapper as in the run to resume, {OR_A_NEW_RUN}.'
            )
        _check_states(runner, group['params'], expected, states, source)


def _check_states(runner: Runner, indices: list[int], own: dict[str, Any], states: dict, source: str) -> None:
    """Compare the parts that the states of a group's parameters have with each other, and their shapes with the model's."""
    usual: dict[bool, set[str]] = {}  # parts by whether it is a matrix: some optimizers treat those otherwise
    for index, parameter in zip(indices, own['params']):
        if index not in states:
            continue
        state = states[index]
        parts = usual.setdefault(parameter.ndim > 1, set(state))
        if set(state) != parts:
            raise ValueError(
                f'{source} cannot be resumed: the optimizer state of parameter {index} has {sorted(state)}, and '
                f'that of others {sorted(parts)}.'
            )
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f'{source} cannot be resumed: {name} of parameter {index} in its optimizer is of shape '
                    f'{tuple(value.shape)}, the parameter of {tuple(parameter.shape)}.'
                )
    absent = [index for index, p in zip(indices, own['params']) if index not in states and p.requires_grad]
    if not absent or not (states or 'betas' in own):  # plain SGD keeps none
        return
    lacks = f'{source} holds no optimizer state of {len(absent)} parameters that train here, such as number {absent[0]}'
    model = segmentor_of(runner)
    if isinstance(getattr(model, 'backbone', None), EoMTViT) and isinstance(model.decode_head, QueryHead):
        raise ValueError(f'{lacks}, and all of an EoMT have one: use an earlier checkpoint, {OR_A_NEW_RUN}.')
    runner.logger.warning(f'{lacks}: they had no gradient yet, or it was lost. It starts from zero.')


def _is_state(groups: Any, states: Any) -> bool:
    return (
        isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get('params'), list) for group in groups)
        and isinstance(states, dict)
        and all(isinstance(state, dict) for state in states.values())
    )


def _differing(group: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """How the numbers of two groups differ, if they do; those that a schedule changes are compared as they began."""
    names, own = ({name for name in side if not name.startswith('initial_')} - IMPLEMENTATION for side in (group, expected))
    absent, new = sorted(names - own), sorted(own - names)
    if absent and new:
        return f'it has {", ".join(absent)}, and no {", ".join(new)}'
    for name in sorted(names & own):
        value, number = (_plain(side.get(f'initial_{name}', side[name])) for side in (group, expected))
        if value != number:
            return f'{name} is {value} there and {number} here'
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _check_schedules(runner: Runner, saved: Any, source: str) -> None:
    own = [schedule.state_dict() for schedule in runner.param_schedulers]
    if (
        not isinstance(saved, list)
        or not all(isinstance(state, dict) for state in saved)
        or [state.keys() for state in saved] != [state.keys() for state in own]
    ):
        raise ValueError(
            f'{source} was trained with other learning rate schedules, or does not hold their state: set param_scheduler as '
            f'in the run to resume, {OR_A_NEW_RUN}.'
        )
    for schedule, state, expected in zip(runner.param_schedulers, saved, own):
        if isinstance(schedule, OptimizerStepsLR):
            continue  # which refuses other numbers itself
        for name in ('begin', 'end', 'total_iters', 'power', 'eta_min', 'eta_min_ratio'):
            if name in state and _plain(state[name]) != _plain(expected[name]):
                what = 'learning rate' if schedule.param_name == 'lr' else schedule.param_name.replace('_', ' ')
                runner.logger.warning(
                    f'The {what} schedule goes on as in the run to resume, with {name}={state[name]}; the config has '
                    f'{expected[name]}.'
                )
