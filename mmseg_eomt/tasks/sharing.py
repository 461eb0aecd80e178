"""Weights that several models have in common, kept once; and what tells whether their encoders are one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_eomt.adapters.base_weights import ROUNDING, matches, named_weights
from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.names import adapter_names, configs_of, plain_name, tuner_layers
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.tasks.trunk import Path

Base = dict[str, Tensor | str]  # weights of an encoder by plain name, or the fingerprint of one that adapters have changed
NUM_SHOWN = 2
STEPS = ('embed', 'run_blocks', 'run_block')  # of the forward pass; subclasses may only differ in their outputs


def base_of(model: nn.Module, note: Mapping[str, Any] | None) -> Base:
    """The encoder's weights that a task takes as given.

    Args:
        model: A task's segmentor.
        note: Its checkpoint's note of adapters, if it has one.

    Returns:
        All of the backbone's for a plain checkpoint, and for one with adapters those that it was trained on.
    """
    own = set(adapter_names(model))
    weights = {name: v for name, v in named_weights(model).items() if name.startswith('backbone.') and name not in own}
    fingerprints = note['base']['fingerprints'] if note else {}
    if not fingerprints:
        return dict(weights)
    given: Base = {}
    for name, noted in fingerprints.items():
        if name in weights:
            given[name] = weights[name] if matches(weights[name], noted) else noted
    return given


def check_one_encoder(bases: Mapping[str, Base]) -> None:
    """Make sure that all tasks stand on the same encoder.

    Raises:
        ValueError: If two do not, with the weights that differ, or have no weight of one name.
    """
    known: dict[str, tuple[str, Tensor | str]] = {}
    for task, base in bases.items():
        if base and known and known.keys().isdisjoint(base):
            raise ValueError(
                f'Task {task!r} has another kind of encoder than {next(iter(bases))!r}, with no weight in common: tasks '
                f'share one frozen encoder.'
            )
        wrong, other = [], ''
        for name, value in base.items():
            first, expected = known.setdefault(name, (task, value))
            if not _same(value, expected):
                wrong.append(name)
                other = other or first
        if wrong:
            raise ValueError(
                f'Tasks {other!r} and {task!r} have different encoders: {len(wrong)} of {len(base)} weights differ, such as '
                f'{", ".join(wrong[:NUM_SHOWN])}. Tasks share one frozen encoder: train each on it, with the same img_size.'
            )


def _same(a: Tensor | str, b: Tensor | str) -> bool:
    if isinstance(a, str):
        return a == b if isinstance(b, str) else matches(b, a)
    if isinstance(b, str):
        return matches(a, b)
    return _alike(a, b)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two weights are equal, or differ by rounding alone, as resized positions of two processors do."""
    if a is b or (a.shape == b.shape and torch.equal(a, b)):
        return True
    return a.shape == b.shape and float((a - b).norm()) <= ROUNDING * float(b.norm())


def share_weights(models: Sequence[nn.Module]) -> None:
    """Let models keep what is equal in them once: parameters and buffers of the same name become the same objects.

    The first model's are kept. Weights of encoders (``backbone``) that differ by rounding alone are shared too. A parameter
    that one model changes in place is changed in all: nothing may be trained or merged afterwards.
    """
    seen: dict[str, list[Tensor]] = {}
    for model in models:
        adapters = set(adapter_names(model))
        for prefix, module in model.named_modules():
            for values in (module._parameters, module._buffers):
                for name, value in values.items():
                    full = f'{prefix}.{name}'
                    if type(value) not in (nn.Parameter, Tensor):  # None, or of fewer bits
                        continue
                    rounded = full.startswith('backbone.') and full not in adapters
                    others = seen.setdefault(plain_name(full), [])
                    values[name] = next((v for v in others if _can_stand_for(v, value, rounded)), value)
                    if values[name] is value:
                        others.append(value)


def _can_stand_for(other: Tensor, value: Tensor, rounded: bool) -> bool:
    if other.dtype != value.dtype or other.shape != value.shape or type(other) is not type(value):
        return False
    return _alike(value, other) if rounded and value.is_floating_point() else torch.equal(value, other)


def paths_of(models: Mapping[str, nn.Module]) -> dict[str, Path]:
    """Which modules the models' encoders have in common, after :func:`share_weights`.

    Blocks that are the same become one module, so that a hook on it sees each of its runs.

    Args:
        models: Segmentors by task.

    Returns:
        Numbers by task: of what comes before the blocks, then of each block; of another kind of encoder as a whole. Equal
        numbers at a place are the same module.
    """
    numbers: dict[Any, int] = {}
    kept: dict[int, nn.Module] = {}
    paths: dict[str, Path] = {}
    for name, model in models.items():
        backbone: Any = model.backbone
        whole = (type(backbone), _adapters(model), contents(backbone))
        if not isinstance(backbone, EoMTViT):
            paths[name] = (numbers.setdefault(whole, len(numbers)),)
            continue
        stem = [part for part in contents(backbone) if part[0].split('.')[0] not in ('blocks', 'norm')]
        steps = tuple(getattr(type(backbone), step) for step in STEPS)
        kind = (steps, repr(backbone.arch), backbone.patch_size, backbone.grid_size)
        path = [numbers.setdefault((kind, tuple(stem)), len(numbers))]
        for i, block in enumerate(backbone.blocks):
            adapted = _adapters(model) if tuner_layers(block) else ''
            path.append(numbers.setdefault((kind, i, adapted, contents(block)), len(numbers)))
            backbone.blocks[i] = kept.setdefault(path[-1], block)
        paths[name] = tuple(path)
    return paths


def contents(module: nn.Module, base: bool = False) -> tuple[tuple[str, Any], ...]:
    """Names of a module's parts with their classes, and of its weights with what they are.

    Args:
        module: After :func:`share_weights`.
        base: Whether to take the weights below the adapters alone, under their plain names. Default: False.
    """
    weights = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    if base:
        own = set(adapter_names(module))
        return tuple((plain_name(name), id(value)) for name, value in weights if name not in own)
    parts = [(name, type(part)) for name, part in module.named_modules() if name]
    return (*parts, *((name, id(value)) for name, value in weights))


def _adapters(model: nn.Module) -> str:
    """All that PEFT's configs say, such as the scale of adapters, which is in no tensor."""
    configs = {name: as_values(config) for name, config in configs_of(model).items()}
    return json.dumps(configs, sort_keys=True, default=str)
