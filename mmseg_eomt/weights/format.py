"""What a checkpoint format is, and the rules that many formats share.

Every format is read into one state dict, "ours": a whole ViT under timm's names, the position embedding without the class
token's place (which is beside it as ``cls_pos_embed``), and for an EoMT the entries of
:class:`~mmseg_eomt.models.eomt_head.EoMTHead` beside the blocks. Entries that the model has no place for are kept as
``unused.<their name>``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmseg_eomt.weights.rules import Concat, Rename, Rule, StateDict

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
        gated_by: Part of a name that only gated MLPs have in this format; None where names do not tell.
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
        given, out = dict(state_dict), {}
        gated = self.gated_by is not None and any(self.gated_by in name for name in given)
        for rule in self.rules(gated):
            rule.read(given, out)
        unknown = [name for name in given if not re.fullmatch(self.unused, name)]
        if unknown:
            raise ValueError(f'{self.name}: {len(unknown)} entries are not known, such as {sorted(unknown)[:3]}.')
        out.update({f'{UNUSED}{name}': value for name, value in given.items()})
        return out

    def write(self, weights: StateDict) -> StateDict:
        """Ours as their state dict; unused entries of other formats are left out.

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
