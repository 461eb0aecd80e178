"""Features of several backbones in one pass: what they have in common runs once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens

Path = tuple[int, ...]  # which stem and which blocks a backbone has; equal numbers are equal modules
Places = Sequence[int] | None  # of some images in a batch, in ascending order; None for all of it
Rows = Mapping[str, Places]  # the images that each task is for


class Mixer(Protocol):
    """Runs a block with another adapter for each image: :class:`~.mixed.MixedTrunk`."""

    def mixes(self, index: int) -> bool:
        """Whether it can run a block."""

    def run_block(self, index: int, tokens: Tokens, names: Sequence[str]) -> Tokens:
        """Run it, given the task of each image."""


class Branch(NamedTuple):
    """Tasks that have run the same modules so far, and their images' tokens."""

    names: list[str]
    rows: Places
    tokens: Tokens


def shared_features(
    backbones: Mapping[str, nn.Module],
    paths: Mapping[str, Path],
    rows: Rows,
    images: Tensor,
    mixers: Mapping[int, Mixer] | None = None,
) -> dict[str, tuple[Any, ...]]:
    """What each task's backbone returns of its images.

    Every backbone computes what it computes alone, with the same operations on the same numbers; but up to the first module
    in which tasks differ, one of them computes it for all.

    Args:
        backbones: By task.
        paths: As :func:`~.sharing.paths_of` returned.
        rows: Of the tasks that are asked for: None for all of them, or places for all of them.
        images: (B, 3, H, W), normalised.
        mixers: By the number of what comes before the blocks. Where images have tasks of their own, a branch that one can
            run does not divide; the matrix products of another batch size may be rounded otherwise. Default: none.

    Returns:
        The backbone's outputs of each task's images, by task.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for names, rows_of_all in _groups(list(rows), paths, rows, 0):
        taken = images if rows_of_all is None else images[rows_of_all]
        first = backbones[names[0]]
        if isinstance(first, EoMTViT):
            mixer = (mixers or {}).get(paths[names[0]][0])
            trunk = Branch(names, rows_of_all, first.embed(taken))
            found.update(_in_blocks(backbones, paths, rows, trunk, mixer))
            continue
        outputs = first(taken)
        for name in names:
            found[name] = tuple(_select(output, rows_of_all, rows[name]) for output in outputs)
    return found


def _in_blocks(
    backbones: Mapping[str, nn.Module], paths: Mapping[str, Path], rows: Rows, trunk: Branch, mixer: Mixer | None
) -> dict[str, tuple[Any, ...]]:
    """Outputs of the tasks of one stem, block by block; a branch divides where its tasks' blocks differ."""
    outputs: dict[str, list[Any]] = {name: [] for name in trunk.names}
    branches, index = [trunk], 0
    while branches:
        parts = [part for branch in branches for part in _divided(branch, paths, rows, index, mixer)]
        branches = []
        for names, rows_here, entering in parts:
            vit: Any = backbones[names[0]]
            if mixer and len({paths[name][index + 1] for name in names}) > 1:
                tasks = [next(name for name in names if row in (rows[name] or ())) for row in rows_here or ()]
                tokens = mixer.run_block(index, entering, tasks)
            else:
                tokens, _ = vit.run_blocks(entering, index, index + 1)
            branches.append(Branch(names, rows_here, tokens))
            for name in names:
                vit = backbones[name]
                if index in vit.out_indices:
                    outputs[name].append(vit.output(index, _rows_of(tokens, rows_here, rows[name])))
        index += 1
    return {name: tuple(outs) for name, outs in outputs.items()}


def _divided(branch: Branch, paths: Mapping[str, Path], rows: Rows, index: int, mixer: Mixer | None) -> list[Branch]:
    """The branch's tasks by their block ``index``, unless it is mixed; those without one are at their end."""
    names = [name for name in branch.names if len(paths[name]) > index + 1]
    groups = _groups(names, paths, rows, index + 1)
    everyone = _union([places for _, places in groups])
    apart = everyone is not None and sum(len(places or ()) for _, places in groups) == len(everyone)
    if mixer and apart and len(groups) > 1 and mixer.mixes(index):
        groups = [(names, everyone)]
    return [Branch(same, places, _rows_of(branch.tokens, branch.rows, places)) for same, places in groups]


def _groups(names: Sequence[str], paths: Mapping[str, Path], rows: Rows, depth: int) -> list[tuple[list[str], Places]]:
    """Tasks of the same module at a depth of their paths, and the images of all of them."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(paths[name][depth], []).append(name)
    return [(same, _union([rows[name] for name in same])) for same in groups.values()]


def _union(parts: Sequence[Places]) -> Places:
    whole = any(part is None for part in parts)
    return None if whole else sorted({row for part in parts for row in part or ()})


def _rows_of(tokens: Tokens, there: Places, wanted: Places) -> Tokens:
    return tokens._replace(x=_select(tokens.x, there, wanted))


def _select(output: Any, there: Places, wanted: Places) -> Any:
    """A part of a batch's outputs, of which some are there."""
    if there is None or wanted is None or len(wanted) == len(there):
        return output
    places = [there.index(row) for row in wanted]
    return output[places] if isinstance(output, Tensor) else type(output)(part[places] for part in output)
