"""Split adapters in PEFT's format, where they are those of three layers, as of a separated model (:mod:`~.separate_qkv`)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmseg_eomt.adapters.names import PREFIX
from mmseg_eomt.adapters.separate_qkv import ROWS

_PART = re.compile(rf'(?P<fused>(?:.*\.)?qkv)\.(?P<row>{"|".join(ROWS)})\.(?P<rest>.+)')
_PAIR = ('lora_A.weight', 'lora_B.weight')
_BIAS = 'base_layer.bias'  # trained with bias='lora_only'


def separate(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], layers: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is written of an adapter some of whose layers are split.

    Args:
        tensors: Under PEFT's names, as of the fused model.
        values: Of its config, with ``split_qkv``.
        layers: Names of the split layers.

    Returns:
        The tensors and the values of PEFT's own LoRA on a separated model. Its targets are the full names of layers.
    """
    fused, new = set(layers), dict(tensors)
    for name in fused:
        for pair in _PAIR:
            parts = new.pop(f'{PREFIX}{name}.{pair}').chunk(3)
            new.update({f'{PREFIX}{name}.{row}.{pair}': part.clone() for row, part in zip(ROWS, parts, strict=True)})
        bias = new.pop(f'{PREFIX}{name}.{_BIAS}', None)
        parts = () if bias is None else bias.chunk(3)
        new.update({f'{PREFIX}{name}.{row}.{_BIAS}': part.clone() for row, part in zip(ROWS, parts) if _has_bias(row, part)})
    ranks = {name: len(new[key]) for key, name in _adapted(new).items()}
    alphas = {name: _alpha(values, _fused_name(name, fused)) for name in ranks}
    explicit = dict(
        target_modules=sorted(ranks),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        rank_pattern={name: rank for name, rank in ranks.items() if rank != values['r']},
        alpha_pattern={name: alpha for name, alpha in alphas.items() if alpha != values['lora_alpha']},
    )
    return new, {name: value for name, value in {**values, **explicit}.items() if name != 'split_qkv'}


def join(tensors: Mapping[str, Tensor], values: dict[str, Any], source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter of PEFT's format as one of a fused model.

    Args:
        tensors: Under PEFT's names.
        values: Of its config.
        source: The folder, for messages.

    Returns:
        Tensors and values with ``split_qkv``, where PEFT has adapted the layers of a separated model; else as they are.

    Raises:
        ValueError: If a layer's three adapters cannot be those of one: the method is not LoRA, a tensor is missing, or rank
            and scale differ.
    """
    found = {name: match for name in tensors if (match := _PART.fullmatch(name.removeprefix(PREFIX)))}
    if not found:
        return dict(tensors), values
    others = [name for name, match in found.items() if match['rest'] not in (*_PAIR, _BIAS)]
    if values['peft_type'] != 'LORA' or others:
        raise ValueError(
            f'{source} has adapters of separate queries, keys and values that are not plain LoRA, such as '
            f'{next(iter(others or found))}: load them with PEFT on separate_qkv(model).'
        )
    fused = sorted({match['fused'] for match in found.values()})
    new = {name: value for name, value in tensors.items() if name not in found}
    ranks, alphas = {}, {}
    for name in fused:
        a, b = _pairs(name, tensors, values, source)
        new.update({f'{PREFIX}{name}.{pair}': torch.cat(parts) for pair, parts in zip(_PAIR, (a, b), strict=True)})
        new.update(_joined_bias(name, tensors, values, source))
        ranks[name] = len(a[0])
        alphas[name] = _one({_alpha(values, f'{name}.{row}') for row in ROWS}, 'lora_alpha', name, source)
    patterns = dict(
        rank_pattern=_pattern(ranks, values.get('rank_pattern'), values['r']),
        alpha_pattern=_pattern(alphas, values.get('alpha_pattern'), values['lora_alpha']),
    )
    return new, {**values, **patterns, **_targets(values, new), 'split_qkv': True}


def _pairs(fused: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any], source: str) -> list[list[Tensor]]:
    """A and B of queries, keys and values; zeros where PEFT was not to adapt one of them."""
    rows = [[tensors.get(f'{PREFIX}{fused}.{row}.{pair}') for row in ROWS] for pair in _PAIR]
    for row, a, b in zip(ROWS, *rows, strict=True):
        if (a is None) != (b is None) or (a is None and _is_target(values, f'{fused}.{row}')):
            raise ValueError(f'{source} lacks the adapter of {fused}.{row}: copy or export it again.')
    pairs = []
    for pair in rows:
        given = next(part for part in pair if part is not None)
        pairs.append([torch.zeros_like(given) if part is None else part for part in pair])
    _one({len(part) for part in pairs[0]}, 'rank', fused, source)
    return pairs


def _has_bias(row: str, bias: Tensor) -> bool:
    """Whether a separate layer has this bias: DINOv3's keys have none, which are zeros in the fused layer."""
    return row != 'k_proj' or bool(bias.any())


def _joined_bias(fused: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The trained bias of a fused layer, if there is one."""
    q, k, v = (tensors.get(f'{PREFIX}{fused}.{row}.{_BIAS}') for row in ROWS)
    if q is None and k is None and v is None:
        return {}
    if q is None or v is None or not _is_target(values, f'{fused}.k_proj'):
        raise ValueError(
            f'{source} trains the bias of {fused} in some of queries, keys and values, which is not put into a fused layer: '
            f'load it with PEFT on separate_qkv(model), or copy it again if it is damaged.'
        )
    return {f'{PREFIX}{fused}.{_BIAS}': torch.cat([q, torch.zeros_like(q) if k is None else k, v])}


def _one(found: set[Any], name: str, layer: str, source: str) -> Any:
    if len(found) > 1:
        raise ValueError(
            f'{source} has adapters of queries, keys and values of {layer} whose {name} differ ({sorted(found)}), which are '
            f'not put into a fused layer: load them with PEFT on separate_qkv(model).'
        )
    return next(iter(found))


def _is_target(values: Mapping[str, Any], name: str) -> bool:
    """PEFT's rule for layers' names."""
    targets, excluded = (values.get(key) or () for key in ('target_modules', 'exclude_modules'))
    return _matches(targets, name) and not _matches(excluded, name)


def _matches(targets: Any, name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f'.{target}') for target in targets)


def _targets(values: Mapping[str, Any], joined: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields that name layers: a list's entries as they name fused ones, or else the layers that have tensors."""
    targets, excluded = (values.get(key) or [] for key in ('target_modules', 'exclude_modules'))
    if isinstance(targets, str) or isinstance(excluded, str) or any(name.split('.')[-1] in ROWS for name in excluded):
        found = sorted(_adapted(joined).values())
        return dict(target_modules=found, exclude_modules=None, layers_to_transform=None, layers_pattern=None)
    return dict(target_modules=sorted({name for target in targets for name in _fused_targets(target)}))


def _fused_targets(target: str) -> list[str]:
    parent, _, row = target.rpartition('.')
    if row not in ROWS or (parent and parent.split('.')[-1] != 'qkv'):
        return [target]
    return [parent] if parent else ['qkv', target]


def _adapted(tensors: Iterable[str]) -> dict[str, str]:
    """The layers that have a LoRA adapter, by the name of its A."""
    ends = ('.lora_A.weight', '.lora_embedding_A')
    return {key: key.removeprefix(PREFIX).removesuffix(end) for key in tensors for end in ends if key.endswith(end)}


def _fused_name(name: str, fused: set[str]) -> str:
    parent = name.rpartition('.')[0]
    return parent if parent in fused else name


def _alpha(values: Mapping[str, Any], name: str) -> Any:
    """A layer's own scale by PEFT's rule for the keys of ``alpha_pattern``, or the common one."""
    patterns = values.get('alpha_pattern') or {}
    found = (value for key, value in patterns.items() if re.match(rf'(.*\.)?({key})$', name))
    return next(found, values['lora_alpha'])


def _pattern(own: dict[str, Any], patterns: dict[str, Any] | None, usual: Any) -> dict[str, Any]:
    """The fused layers' values in front of what is set for others; PEFT takes the first that matches."""
    needed = own if patterns else {name: value for name, value in own.items() if value != usual}
    return {**needed, **(patterns or {})}
