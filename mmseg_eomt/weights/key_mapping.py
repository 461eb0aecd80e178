"""Reversible rules between the names and shapes of a checkpoint format and ours.

Names are templates: ``{i}`` stands for a block's number and ``{p}`` for ``weight`` or ``bias``. A rule takes what it knows
out of a state dict and puts it into another; each undoes in :meth:`write` what it does in :meth:`read`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Rename:
    """One tensor under another name."""

    ours: str
    theirs: str

    def read(self, given: StateDict, out: StateDict) -> None:
        """Move what matches from ``given``, under their names, to ``out``, under ours."""
        move(given, self.theirs, out, self.ours)

    def write(self, given: StateDict, out: StateDict) -> None:
        """The reverse of :meth:`read`."""
        move(given, self.ours, out, self.theirs)


@dataclass(frozen=True)
class Concat:
    """Several of their tensors are one of ours, one after the other along the first axis.

    A part that is None is absent in the format and zero in ours.
    """

    ours: str
    theirs: tuple[str | None, ...]

    def read(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.read`; nothing is done where a part is missing."""
        first = next(part for part in self.theirs if part)
        for values in matching(given, first):
            names = [part and part.format(**values) for part in self.theirs]
            if not all(name is None or name in given for name in names):
                continue
            like = given[names[0] or first.format(**values)]
            parts = [torch.zeros_like(like) if name is None else given.pop(name) for name in names]
            out[self.ours.format(**values)] = torch.cat(parts)

    def write(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.write`.

        Raises:
            ValueError: If a part that the format has no place for is not zero.
        """
        for values in matching(given, self.ours):
            name = self.ours.format(**values)
            for part, value in zip(self.theirs, given.pop(name).chunk(len(self.theirs))):
                if part is not None:
                    out[part.format(**values)] = value.clone()  # a view would be saved with all that it is part of
                elif value.any():
                    raise ValueError(f'{name} has a part that this format omits, and it is not zero.')


@dataclass(frozen=True)
class MaskedBias:
    """DINOv3's bias of queries, keys and values, beside a mask that is 0 where the keys' is and 1 elsewhere."""

    ours: str
    theirs: str
    mask: str

    def read(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.read`; what the mask excludes becomes zero."""
        for values in matching(given, self.theirs):
            bias = given.pop(self.theirs.format(**values))
            mask = given.pop(self.mask.format(**values), None)
            out[self.ours.format(**values)] = bias if mask is None else bias.masked_fill(mask == 0, 0)

    def write(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.write`."""
        for values in matching(given, self.ours):
            bias = given.pop(self.ours.format(**values))
            mask = torch.ones_like(bias)
            mask.chunk(3)[1].zero_()
            out[self.theirs.format(**values)] = bias
            out[self.mask.format(**values)] = mask


@dataclass(frozen=True)
class Positions:
    """A learned position embedding; ours is (1, h · w, C), and the class token's position is kept beside it.

    Attributes:
        theirs: Their name.
        class_first: Whether theirs begins with the class token's position. None: not where there are registers or no class
            token, as in timm, and elsewhere inferred from the number of positions, which for public ViTs is a square, or a
            square and one.
        batched: Whether theirs is (1, N, C), or (N, C).
    """

    theirs: str
    class_first: bool | None
    batched: bool = True

    def read(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.read`."""
        if self.theirs not in given:
            return
        value = given.pop(self.theirs)
        value = value if self.batched else value[None]
        class_first = self.class_first
        if class_first is None:
            class_first = 'cls_token' in out and 'reg_token' not in out and not _is_square(value.shape[1])
        if class_first:
            out['cls_pos_embed'], value = value[:, :1], value[:, 1:]
        out['pos_embed'] = value

    def write(self, given: StateDict, out: StateDict) -> None:
        """As :meth:`Rename.write`; a class token that holds its position already gets a position of zero."""
        if 'pos_embed' not in given or (self.class_first is False and 'cls_pos_embed' in given):
            return
        value, place = given.pop('pos_embed'), given.pop('cls_pos_embed', None)
        if self.class_first and place is None:
            place = torch.zeros_like(value[:, :1])
        if place is not None:
            value = torch.cat((place, value), dim=1)
        out[self.theirs] = value if self.batched else value[0]


Rule = Rename | Concat | MaskedBias | Positions


def move(given: StateDict, source: str, out: StateDict, target: str) -> None:
    """Move all that matches one template from a state dict to another, under the other template."""
    for values in matching(given, source):
        out[target.format(**values)] = given.pop(source.format(**values))


def matching(given: StateDict, template: str) -> Iterator[dict[str, str]]:
    """The values of ``{i}`` and ``{p}`` for which a template names an entry."""
    pattern = re.escape(template).replace(r'\{i\}', r'(?P<i>\d+)').replace(r'\{p\}', '(?P<p>weight|bias)')
    found = (re.fullmatch(pattern, name) for name in given)
    yield from [match.groupdict() for match in found if match]


def prefixed(rules: tuple[Rule, ...], prefix: str, sides: tuple[str, ...] = ('theirs', 'mask')) -> tuple[Rule, ...]:
    """Rules whose names of theirs, or of other ``sides``, all begin with ``prefix``."""
    changed = []
    for rule in rules:
        fields = dict(vars(rule))
        for name in sides:
            value = fields.get(name)
            if isinstance(value, str):
                fields[name] = prefix + value
            elif isinstance(value, tuple):
                fields[name] = tuple(part and prefix + part for part in value)
        changed.append(type(rule)(**fields))
    return tuple(changed)


def _is_square(number: int) -> bool:
    return round(number**0.5) ** 2 == number


UNUSED = 'unused.'
GRID = 'pos_grid'  # of EoMTViT: rows and columns that its position embedding is for


@dataclass(frozen=True)
class Format:
    """A layout of names and shapes.

    Attributes:
        name: For messages.
        needs: Entries that a state dict of this format has.
        lacks: Beginnings of names that it has not.
        rules: Gives the rules, for gated MLPs or plain ones.
        gated_by: Part of a name that only gated MLPs have in this format; None where names do not say.
        unused: Patterns of names that are known, and that our model has no place for.
        is_eomt: Whether it is a whole EoMT rather than a ViT.
    """

    name: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...]
    rules: Callable[[bool], tuple[Rule, ...]]
    gated_by: str | None = None
    unused: str = r'(?!)'
    is_eomt: bool = False

    def matches(self, state_dict: StateDict) -> bool:
        """Whether a state dict has the entries of this format."""
        return all(name in state_dict for name in self.needs) and not any(
            name.startswith(self.lacks) for name in state_dict if self.lacks
        )

    def read(self, state_dict: StateDict) -> StateDict:
        """Their state dict as ours.

        Raises:
            ValueError: If it has entries that the format does not know.
        """
        given: StateDict = dict(state_dict)
        out: StateDict = {}
        gated = self.gated_by is not None and any(self.gated_by in name for name in given)
        for rule in self.rules(gated):
            rule.read(given, out)
        unknown = [name for name in given if not re.fullmatch(self.unused, name)]
        if unknown:
            raise ValueError(f'{self.name}: {len(unknown)} entries are not known, such as {sorted(unknown)[:3]}.')
        out.update({f'{UNUSED}{name}': value for name, value in given.items()})
        return out

    def write(self, weights: StateDict) -> StateDict:
        """Ours as their state dict; unused entries of other formats are ignored.

        Raises:
            ValueError: If there are weights that the format has no place for.
        """
        given = {name: value for name, value in weights.items() if not name.startswith(UNUSED)}
        kept = {name.removeprefix(UNUSED): value for name, value in weights.items() if name.startswith(UNUSED)}
        out: StateDict = {}
        for rule in self.rules(is_gated(given)):
            rule.write(given, out)
        given.pop(GRID, None)  # public formats have square images, or none to note
        if given:
            raise ValueError(f'{self.name} has no place for {len(given)} weights, such as {sorted(given)[:3]}.')
        return out | {name: value for name, value in kept.items() if re.fullmatch(self.unused, name)}


def is_gated(weights: StateDict) -> bool:
    """Whether the MLPs of one of our state dicts are gated: the first layer then gives twice what the second takes."""
    first, second = (weights.get(f'blocks.0.mlp.{layer}.weight') for layer in ('fc1', 'fc2'))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def blocks(theirs: str, **names: str) -> tuple[Rule, ...]:
    """Rules for what the blocks of most formats have alike: norms and LayerScale."""
    return (
        Rename('blocks.{i}.norm1.{p}', f'{theirs}.{names.get("norm1", "norm1")}.{{p}}'),
        Rename('blocks.{i}.norm2.{p}', f'{theirs}.{names.get("norm2", "norm2")}.{{p}}'),
        Rename('blocks.{i}.ls1.gamma', f'{theirs}.{names.get("ls1", "ls1.gamma")}'),
        Rename('blocks.{i}.ls2.gamma', f'{theirs}.{names.get("ls2", "ls2.gamma")}'),
    )


def mlp(
    theirs: str, plain: tuple[str, str], gated: bool, gate: str = '', value: str = '', out: str = ''
) -> tuple[Rule, ...]:
    """Rules for an MLP; a gated one whose first layer is two in the format, or one that ``gate`` alone names."""
    if not gated:
        first, second = plain
        return (
            Rename('blocks.{i}.mlp.fc1.{p}', f'{theirs}.{first}.{{p}}'),
            Rename('blocks.{i}.mlp.fc2.{p}', f'{theirs}.{second}.{{p}}'),
        )
    parts = (f'{theirs}.{gate}.{{p}}', f'{theirs}.{value}.{{p}}')
    joined = Concat('blocks.{i}.mlp.fc1.{p}', parts) if value else Rename('blocks.{i}.mlp.fc1.{p}', parts[0])
    return joined, Rename('blocks.{i}.mlp.fc2.{p}', f'{theirs}.{out}.{{p}}')


def separate_qkv(theirs: str, query: str, key: str, value: str, key_bias: bool = True) -> tuple[Rule, ...]:
    """Rules for queries, keys and values in a layer each."""
    names = [f'{theirs}.{layer}' for layer in (query, key, value)]
    biases = [f'{name}.bias' for name in names]
    return (
        Concat('blocks.{i}.attn.qkv.weight', tuple(f'{name}.weight' for name in names)),
        Concat('blocks.{i}.attn.qkv.bias', tuple(biases) if key_bias else (biases[0], None, biases[2])),
    )


def same(*names: str) -> tuple[Rule, ...]:
    """Rules for names that are the same as ours."""
    return tuple(Rename(name, name) for name in names)
