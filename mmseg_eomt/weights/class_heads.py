"""Class heads of another kind than the model's: a linear one is converted where training starts, or a clear refusal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.weights.checkpoint import Checkpoint
from mmseg_eomt.weights.key_mapping import StateDict

# an entry that no other kind has: what the kind is called, and how decode_head is set to it
ANOMALY_HEAD = "type='EoMTAnomalyHead' and "
KINDS = {
    '.scales': ('a cosine class head', f'{ANOMALY_HEAD}cosine_head=dict(…)'),
    '.negative.weight': ('a class head with a class of outliers', f'{ANOMALY_HEAD}negative_class=True'),
}
LINEAR = ('a linear class head', 'neither cosine_head nor negative_class')


@dataclass
class Converted:
    """What a class head takes from a linear one, beside its weight and bias.

    Attributes:
        values: Entries of the model's state dict.
        adapted: Lines for the log: what was computed.
        new: Lines for the log: what is randomly initialised.
        absent: Names of the entries that are.
    """

    values: StateDict = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        rows = (self.adapted, [f'randomly initialised: {line}' for line in self.new])
        return '; '.join(line for lines in rows for line in lines)


def convert_class_heads(model: nn.Module, state_dict: StateDict, source: str, training: bool, prefix: str = '') -> Converted:
    """Compare the kind of a checkpoint's class head with that of each :class:`QueryHead` in a model.

    A class head that can start from a linear one has a method ``from_linear(weight, bias, norm_weight, norm_bias)``: it
    returns the values of its further entries by name, and a line for the log. What it returns no value of is randomly
    initialised.

    Args:
        model: A :class:`QueryHead`, or a model with one.
        state_dict: The checkpoint's, under the model's names.
        source: Its path or URL, for messages.
        training: Whether a new run starts from it, so that a linear head may be converted.
        prefix: What the names in it begin with, such as an EMA copy's ``'module.'``.

    Returns:
        What is to be put beside the checkpoint's entries; nothing where the kinds are alike.

    Raises:
        ValueError: If the kinds differ otherwise, with what to set.
    """
    converted = Converted()
    for name, head in model.named_modules():
        if isinstance(head, QueryHead):
            start = f'{name}.' if name else ''
            _convert(head, state_dict, f'{prefix}{start}', source, training, converted)
    return converted


def with_class_heads(model: nn.Module, state_dict: StateDict, checkpoint: Checkpoint) -> StateDict:
    """A state dict under the model's names, with what its class heads take from a linear one.

    Raises:
        ValueError: If the class heads are of different kinds, with what to set.
    """
    converted = convert_class_heads(model, state_dict, checkpoint.source, checkpoint.starts_training)
    if str(converted):
        print_log(f'{checkpoint.source}: {converted}', logger='current')
    return checkpoint.attach({**state_dict, **converted.values}) if converted.values else state_dict


def _convert(head: QueryHead, given: StateDict, prefix: str, source: str, training: bool, converted: Converted) -> None:
    start, own = f'{prefix}class_head.', head.state_dict()
    names = [name for name in given if name.startswith(start)]
    has, asked = _kind(names), _kind(name for name in own if name.startswith('class_head.'))
    if not names or has == asked:
        return
    weight, like = given.get(f'{start}weight'), own.get('class_head.weight')
    if training and weight is not None and like is not None and weight.shape != like.shape:
        return  # other classes: all of it is randomly initialised
    parts = {f'{prefix}class_head{"." if part else ""}{part}': m for part, m in head.class_head.named_modules()}
    taken = {name: part for name, part in parts.items() if hasattr(part, 'from_linear') and f'{name}.bias' in given}
    if has != LINEAR or not training or not taken:
        new_run = '; to start a new run from it, put it into load_from' if has == LINEAR else ''
        raise ValueError(
            f'{source} has {has[0]}, and the model {asked[0]}: set {has[1]} in decode_head, as in training{new_run}.'
        )
    norm = [given.get(f'{prefix}norm.{name}', own[f'norm.{name}']) for name in ('weight', 'bias')]
    for name, part in taken.items():
        values, line = _from_linear(part, given[f'{name}.weight'], given[f'{name}.bias'], *norm)
        converted.values.update({f'{name}.{entry}': value for entry, value in values.items()})
        converted.absent |= {f'{name}.{entry}' for entry in part.state_dict()} - given.keys() - converted.values.keys()
        (converted.adapted if values else converted.new).append(line)


def _from_linear(part: Any, *linear: Tensor) -> tuple[StateDict, str]:
    return part.from_linear(*(value.detach().float().cpu() for value in linear))


def _kind(names: Iterable[str]) -> tuple[str, str]:
    """What a class head with these entries is called, and how it is asked for."""
    names = list(names)
    return next((kind for end, kind in KINDS.items() if any(name.endswith(end) for name in names)), LINEAR)
