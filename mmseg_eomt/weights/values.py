"""What may stand in a checkpoint: dense tensors of finite numbers, and of the kind that the model has in their place."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

STATE_DICTS = ('state_dict', 'ema_state_dict', 'model')
EXTRA = '_extra_state'  # what PyTorch's modules may put beside their tensors
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # those of 8 bits come with scales of their own
MOMENTS = ('exp_avg', 'max_exp_avg')  # of Adam and its kin; other optimizers also keep numbers and lists


def check_checkpoint(loaded: Any, source: object) -> None:
    """Make sure that what was read from a file has the form of a checkpoint: state dicts, and ``meta`` beside them.

    The optimizer's state is looked at where it is used (:func:`check_optimizer`).

    Raises:
        ValueError: If it has not, or as :func:`check_values`.
    """
    if not isinstance(loaded, dict):
        raise ValueError(f'{source} holds a {type(loaded).__name__}, not weights by name: save a state dict.')
    if not all(isinstance(name, str) for name in loaded):
        raise ValueError(
            f'{source} holds {next(n for n in loaded if not isinstance(n, str))!r}, and names of weights are text.'
        )
    for part in ('state_dict', 'meta'):
        if not isinstance(loaded.get(part, {}), Mapping):
            raise ValueError(f'{source}: {part} is a {type(loaded[part]).__name__}, and values by name belong there.')
    wrapped = {part: loaded[part] for part in STATE_DICTS if isinstance(loaded.get(part), Mapping)}
    for part, weights in wrapped.items():
        check_values(weights, source, '' if part == 'state_dict' else f'{part}.')
    if not wrapped and any(isinstance(value, Tensor) for value in loaded.values()):
        check_values(loaded, source)


def check_values(weights: Mapping[str, Any], source: object, part: str = '') -> None:
    """Make sure that a state dict holds tensors, and these numbers.

    Args:
        weights: A state dict, as it was read.
        source: Its file, for messages.
        part: What comes before the names in messages, such as ``'ema_state_dict.'``.

    Raises:
        ValueError: If a value is no tensor, if a tensor is sparse, quantized or without data, or if it holds NaN or Inf,
            with its name.
    """
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f'{source}: {part}{name!r} is a {type(name).__name__}, and names of weights are text.')
        if not name.endswith(EXTRA):
            _check_value(f'{part}{name}', value, source)


def check_kinds(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Make sure that a model gets floating-point numbers where it has some: loading would convert others silently.

    Raises:
        ValueError: If a tensor is of integers, booleans or complex numbers instead, with its name.
    """
    own = model.state_dict()
    for name, value in weights.items():
        kept = own.get(name, own.get(name.removeprefix('module.')))
        if isinstance(kept, Tensor) and isinstance(value, Tensor):
            check_kind(name, value, kept.dtype, source)


def check_kind(name: str, value: Tensor, wanted: torch.dtype, source: object) -> None:
    """As :func:`check_kinds`, for one tensor."""
    if value.is_complex() > wanted.is_complex or (wanted.is_floating_point and not value.is_floating_point()):
        raise ValueError(f'{source}: {name} is of {_told(value.dtype)}, and {_told(wanted)} belongs there.')


def check_optimizer(state: Any, source: object) -> None:
    """Make sure that what an optimizer is to go on from are numbers: the state of one, or of several by name.

    Raises:
        ValueError: If it has another form, or as :func:`check_values`.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"{source}: optimizer is a {type(state).__name__}, and an optimizer's state dict belongs there.")
    for path, values in _parameter_states(state, 'optimizer'):
        if not isinstance(values, Mapping):
            raise ValueError(f'{source}: {path} is a {type(values).__name__}, and values by name belong there.')
        for name, value in values.items():
            place, is_number = f'{path}.{name}', isinstance(value, (int, float)) and not isinstance(value, bool)
            value = torch.tensor(value) if is_number else value
            if str(name).startswith((*MOMENTS, 'step')) or isinstance(value, (str, Tensor)):
                _check_value(place, value, source)
            if str(name).startswith(MOMENTS) or (name == 'step' and (value.dtype == torch.bool or value.is_complex())):
                check_kind(place, value, torch.float32, source)


def _parameter_states(state: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The states of single parameters, with their places."""
    for key, value in state.items():
        if key == 'state':
            known = isinstance(value, Mapping)
            yield from ((f'{path}.state.{i}', part) for i, part in value.items()) if known else [(f'{path}.state', value)]
        elif isinstance(value, Mapping) and 'state' in value:  # one of several optimizers
            yield from _parameter_states(value, f'{path}.{key}')


def _check_value(name: str, value: Any, source: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f'{source}: {name} is a {type(value).__name__}, and a tensor belongs there.')
    kinds = dict(quantized=value.is_quantized, nested=value.is_nested, meta=value.is_meta)
    kind = next((kind for kind, is_so in kinds.items() if is_so), _told(value.layout))
    if kind != 'strided':
        raise ValueError(f'{source}: {name} is a {kind} tensor, and a dense one belongs there: save it as such.')
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise ValueError(f'{source}: {name} is of {_told(value.dtype)}, whose scales are elsewhere: save it as float16.')
    if not _is_finite(value):
        numbers = value if value.is_complex() else value.float()
        raise ValueError(
            f'{source}: {name} holds {numbers.isnan().sum()} NaN and {numbers.isinf().sum()} Inf among {value.numel()} '
            f'numbers: use a checkpoint from before training diverged, or copy the file again.'
        )


def _is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite, or are a mask of attention, which is 0 and -Inf.

    A sum is one fast look at all of them: it is finite only if they are. Where it is not, each is looked at.
    """
    if not (value.is_floating_point() or value.is_complex()):
        return True
    value = value.detach()
    kind = torch.promote_types(value.dtype, torch.float32)
    if torch.isfinite(value.sum(dtype=kind)) or torch.isfinite(value).all():
        return True
    square = value.dim() >= 2 and value.shape[-1] == value.shape[-2]
    return square and value.is_floating_point() and bool((value.isneginf() | (value == 0)).all())


def _told(kind: object) -> str:
    return str(kind).removeprefix('torch.')
