"""What a config counts in iterations, for optimizer steps that take another number of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

TRAIN = ('max_iters', 'val_interval', 'val_begin', 'dynamic_intervals')
CHECKPOINT = ('interval', 'save_begin')
SCHEDULER = ('begin', 'end', 'milestones', 'T_max', 'step_size', 'total_steps', 'total_iters', 'periods')
HOOK = ('start_iters', 'end_iters', 'begin_iter')


def scaled(config: Config, factor: float) -> dict[str, Any]:
    """The ``--cfg-options`` that keep a config's steps of the optimizer.

    What counts epochs stays: an epoch has as many images as before.

    Args:
        config: As ``tools/train.py`` takes it.
        factor: Iterations of a step, in those that a step of the config takes.

    Raises:
        ValueError: If something counts iterations in a way that a number does not change.
    """
    if factor == 1:
        return {}
    found: dict[str, Any] = {}
    for prefix, group, names in _groups(config):
        for name in names:
            new = _times(group.get(name), factor)
            if new != _as_list(group.get(name)):
                found[f'{prefix}.{name}'] = new
        for name, rate in _rates(prefix, group).items():
            found[f'{prefix}.{name}'] = float(f'{_per_iteration(name, rate, factor):.6g}')
    return found


def _groups(config: Config) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Parts of a config that count iterations, and under which names they do."""
    loop = config.get('train_cfg') or {}
    if not (loop.get('by_epoch') or 'max_epochs' in loop):
        yield 'train_cfg', loop, TRAIN
    checkpoint = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if not checkpoint.get('by_epoch', True):
        yield 'default_hooks.checkpoint', checkpoint, CHECKPOINT
    schedulers = config.get('param_scheduler') or ()
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:
        raise ValueError('param_scheduler has schedules of several optimizers, whose iterations cannot be planned.')
    places = [('param_scheduler', schedulers)] if isinstance(schedulers, Mapping) else []
    places = places or [(f'param_scheduler.{i}', scheduler) for i, scheduler in enumerate(schedulers)]
    yield from ((place, scheduler, SCHEDULER) for place, scheduler in places if not scheduler.get('by_epoch', True))
    for i, hook in enumerate(config.get('custom_hooks') or ()):
        yield f'custom_hooks.{i}', hook, HOOK


def _rates(prefix: str, group: Mapping[str, Any]) -> dict[str, float]:
    """What changes something a little at each iteration."""
    kind = str(group.get('type'))
    if prefix.startswith('param_scheduler') and kind.startswith('Exponential'):
        return {'gamma': group['gamma']}
    average = group.get('ema_type', 'ExponentialMovingAverage')
    if kind != 'EMAHook' or average == 'StochasticWeightAverage':  # which is a mean of the run
        return {}
    if average != 'ExponentialMovingAverage':
        raise ValueError(
            f'{prefix} is an EMAHook whose {average} counts iterations, and another accumulation cannot be planned '
            f'with it: take ExponentialMovingAverage, or leave the hook out.'
        )
    return {'momentum': group.get('momentum', 0.0002)}


def _per_iteration(name: str, rate: float, factor: float) -> float:
    return rate ** (1 / factor) if name == 'gamma' else 1 - (1 - rate) ** (1 / factor)


def _times(value: Any, factor: float) -> Any:
    """A number of iterations for another accumulation; fractions of a run stay, and what is never or at once."""
    if isinstance(value, (list, tuple)):
        return [_times(one, factor) for one in value]
    return max(1, round(value * factor)) if isinstance(value, int) and value is not True and value > 0 else value


def _as_list(value: Any) -> Any:
    return [_as_list(one) for one in value] if isinstance(value, (list, tuple)) else value
