"""Damage to what a PyTorch checkpoint holds; the file itself stays whole."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Content = dict[str, Any]
Kind = Callable[[Content, random.Random], None]
SILLY: tuple[Any, ...] = (None, 'text', 5, -1.5, [], [3], {}, {'a': 1}, True, b'bytes', torch.ones(2))


def weights_of(content: Content) -> Content:
    """The state dict of a checkpoint."""
    return content.get('state_dict', content)


def _pick(content: Content, draw: random.Random) -> tuple[Content, str]:
    """A weight, and the dict that it is in."""
    weights = weights_of(content)
    return weights, draw.choice([name for name, value in weights.items() if value.is_floating_point() and value.numel() > 1])


NUM_QUERIES = 12  # of the small model


def _tensor(change: Callable[[torch.Tensor, random.Random], Any], name: str) -> Kind:
    def kind(content: Content, draw: random.Random) -> None:
        weights, key = _pick(content, draw)
        weights[key] = change(weights[key].clone(), draw)

    kind.__name__ = name
    return kind


def _one_value(value: torch.Tensor, draw: random.Random, new: float) -> torch.Tensor:
    value.view(-1)[draw.randrange(value.numel())] = new
    return value


def _doubled(value: torch.Tensor, draw: random.Random) -> torch.Tensor:
    # twice the queries are a model too, which nothing in a file contradicts: columns instead
    return torch.cat([value, value], dim=1 if value.dim() == 2 and len(value) == NUM_QUERIES else 0)


TENSORS: tuple[Kind, ...] = (
    _tensor(lambda value, draw: _one_value(value, draw, float('nan')), 'a NaN'),
    _tensor(lambda value, draw: _one_value(value, draw, draw.choice([1, -1]) * float('inf')), 'an Inf'),
    _tensor(lambda value, draw: torch.full_like(value, float('nan')), 'NaN throughout'),
    _tensor(lambda value, draw: value.to(draw.choice([torch.int64, torch.int32, torch.uint8])), 'integers'),
    _tensor(lambda value, draw: value > 0, 'booleans'),
    _tensor(lambda value, draw: value.to(torch.complex64), 'complex numbers'),
    _tensor(lambda value, draw: value.to_sparse(), 'a sparse tensor'),
    _tensor(lambda value, draw: value.tolist(), 'a list of its numbers'),
    _tensor(lambda value, draw: value.to('meta'), 'a meta tensor'),
    _tensor(lambda value, draw: value.to(torch.float8_e4m3fn), 'eight bits'),
    _tensor(lambda value, draw: draw.choice([None, 'text', 5.0, [1.0], {}, b'x']), 'no tensor'),
    _tensor(lambda value, draw: value.unsqueeze(0), 'a dimension more'),
    _tensor(lambda value, draw: value.flatten()[1:], 'a number less'),
    _tensor(_doubled, 'twice the rows'),
    _tensor(lambda value, draw: value.new_zeros(0), 'no number'),
    _tensor(lambda value, draw: value.sum(), 'one number'),
)


def missing(content: Content, draw: random.Random) -> None:
    """A weight is not there."""
    weights, name = _pick(content, draw)
    del weights[name]


def missing_group(content: Content, draw: random.Random) -> None:
    """All weights of a kind are not there, such as every lora_B."""
    weights, name = _pick(content, draw)
    end = name.split('.')[-2 if name.count('.') else 0]
    for other in [other for other in weights if end in other.split('.')]:
        del weights[other]


def renamed(content: Content, draw: random.Random) -> None:
    """A weight has another name."""
    weights, name = _pick(content, draw)
    weights[draw.choice([f'{name}_', f'x.{name}', name.upper(), name[:-1], name.replace('.', '_')])] = weights.pop(name)


def odd_name(content: Content, draw: random.Random) -> None:
    """A name that is no text."""
    weights, name = _pick(content, draw)
    weights[draw.choice([5, None, ('a',), b'x', 1.5])] = weights.pop(name)


def half(content: Content, draw: random.Random) -> None:
    """Every second weight is not there."""
    weights = weights_of(content)
    for name in list(weights)[::2]:
        del weights[name]


def no_weights(content: Content, draw: random.Random) -> None:
    """Something else in the place of the state dict."""
    if 'state_dict' in content:
        content['state_dict'] = draw.choice(SILLY)
    else:
        content.clear()


def infinite_nesting(content: Content, draw: random.Random) -> None:
    """A dict that holds itself."""
    weights = weights_of(content)
    weights['itself'] = weights


def odd_meta(content: Content, draw: random.Random) -> None:
    """The meta is something else, or not there."""
    content['meta'] = draw.choice(SILLY)
    if draw.random() < 0.2:
        del content['meta']


def odd_entry_of_meta(content: Content, draw: random.Random) -> None:
    """A value of the meta is of another type."""
    names = [
        name for name in content['meta'] if name in ('iter', 'epoch', 'dataset_meta', 'cfg', 'adapter', 'merged', 'seed')
    ]
    content['meta'][draw.choice(names)] = draw.choice(SILLY)


def other_type(value: Any, draw: random.Random) -> Any:
    """A value of another type: another number would be another adapter, and no damage."""
    numbers, texts = (int, float, bool), (str, type(None))
    family = next((kinds for kinds in (numbers, texts, (list, tuple)) if isinstance(value, kinds)), type(value))
    return draw.choice([silly for silly in SILLY if not isinstance(silly, family)])


def odd_note(content: Content, draw: random.Random) -> None:
    """A field of the adapters' note is of another type, or not there."""
    note = content['meta']['adapter']
    place, name = draw.choice([(part, key) for part in (note, note['base'], note['peft']) for key in part])
    place[name] = other_type(place[name], draw)
    if place is not note['peft'] and draw.random() < 0.3:
        del place[name]


def odd_fingerprints(content: Content, draw: random.Random) -> None:
    """Fingerprints that are none."""
    noted = content['meta']['adapter']['base']['fingerprints']
    noted[draw.choice(list(noted))] = draw.choice([*SILLY, 'a:b:c:d', ':::', '3x', '32:0:nan:nan'])


def odd_optimizer(content: Content, draw: random.Random) -> None:
    """An optimizer's state that cannot be gone on with."""
    states = content['optimizer']['state']
    number = draw.choice(list(states))
    name = draw.choice(['exp_avg', 'exp_avg_sq', 'step'])
    value = states[number][name]
    nan = value.clone().fill_(float('nan'))
    changed = [nan, *SILLY, value.to(torch.complex64), value.bool(), torch.ones(3, 3)]
    states[number][name] = draw.choice(changed)


def less_optimizer(content: Content, draw: random.Random) -> None:
    """Parts of the optimizer's state are not there, or something else."""
    optimizer = content['optimizer']
    states = optimizer['state']
    number = draw.choice(list(states))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: states.pop(number),
        lambda: states[number].pop('exp_avg'),
        lambda: states.update({number: dict(momentum_buffer=states[number]['exp_avg'])}),
        lambda: states.clear(),
        lambda: optimizer['param_groups'].pop(),
        lambda: optimizer['param_groups'][0].pop('lr'),
        lambda: optimizer['param_groups'][0].update(lr=draw.choice(['fast', None, float('nan'), -1.0])),
        lambda: optimizer.pop('param_groups'),
        lambda: content.update(optimizer=draw.choice(SILLY)),
    )
    draw.choice(changes)()


def odd_progress(content: Content, draw: random.Random) -> None:
    """How far the run is, its log, its schedules or its random numbers are something else."""
    name = draw.choice(['iter', 'iter', 'message_hub', 'param_schedulers', 'random_state'])
    if name == 'iter':
        content['meta'][name] = draw.choice([10**9, 10**18, -3, 2.5, 'four', None, float('inf'), torch.ones(2)])
    elif name in content:
        content[name] = draw.choice(SILLY)


class Code:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, canary: Path, how: int) -> None:
        self.call = [
            (os.system, (f'touch {canary}',)),
            (open, (str(canary), 'w')),
            (eval, (f'open({str(canary)!r}, "w")',)),
        ][how]

    def __reduce__(self) -> tuple:
        return self.call


def code(content: Content, draw: random.Random, canary: Path) -> None:
    """Asks for code to be run."""
    asked = Code(canary, draw.randrange(3))
    weights, name = _pick(content, draw)
    place, key = draw.choice([(weights, name), (weights, 'new'), (content, 'meta'), (content, 'extra')])
    place[key] = asked


def float64(content: Content, draw: random.Random) -> None:
    """Harmless: more bits."""
    _to(content, torch.float64)


def float16(content: Content, draw: random.Random) -> None:
    """Harmless, but for rounding."""
    _to(content, torch.float16)


def bfloat16(content: Content, draw: random.Random) -> None:
    """Harmless, but for rounding."""
    _to(content, torch.bfloat16)


def _to(content: Content, dtype: torch.dtype) -> None:
    weights = weights_of(content)
    for name, value in weights.items():
        if value.is_floating_point():
            weights[name] = value.to(dtype)


def extra_entry(content: Content, draw: random.Random) -> None:
    """Harmless: a further entry beside the state dict."""
    if 'state_dict' in content:
        content['hyper_parameters'] = dict(lr=0.1)


def strided(content: Content, draw: random.Random) -> None:
    """Harmless: a weight that is stored transposed."""
    weights, name = _pick(content, draw)
    weights[name] = weights[name].t().contiguous().t() if weights[name].dim() == 2 else weights[name]


def unchanged(content: Content, draw: random.Random) -> None:
    """Harmless: written again."""


STRUCTURE: tuple[Kind, ...] = (missing, missing_group, renamed, odd_name, half, no_weights, infinite_nesting)
META: tuple[Kind, ...] = (odd_meta, odd_entry_of_meta)
NOTES: tuple[Kind, ...] = (odd_note, odd_note, odd_fingerprints)
OPTIMIZERS: tuple[Kind, ...] = (odd_optimizer, less_optimizer, odd_progress)
ROUNDED: tuple[Kind, ...] = (float16, bfloat16)
HARMLESS: tuple[Kind, ...] = (extra_entry, strided, unchanged)
