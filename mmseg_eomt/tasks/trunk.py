"""Features of several backbones in one pass: what they have in common runs once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens

Path = tuple[int, ...]  # which stem and which blocks a backbone has; equal numbers are equal modules
Places = Sequence[int] | None  # of some images in a batch, in ascending order; None for all of it
Rows = Mapping[str, Places]  # the images that each task is for


class Branch(NamedTuple):
    """Tasks that have run the same modules so far, and their images' tokens."""

    names: list[str]
    rows: Places
    tokens: Tokens


def shared_features(
    backbones: Mapping[str, nn.Module], paths: Mapping[str, Path], rows: Rows, images: Tensor
) -> dict[str, tuple[Any, ...]]:
    """What each task's backbone returns of its images.

    Every backbone computes what it computes alone, with the same operations on the same numbers; but up to the first module
    in which tasks differ, one of them computes it for all.

    Args:
        backbones: By task.
        paths: As :func:`~.sharing.paths_of` returned.
        rows: Of the tasks that are asked for: None for all of them, or places for all of them.
        images: (B, 3, H, W), normalised.

    Returns:
        The backbone's outputs of each task's images, by task.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for names, rows_of_all in _groups(list(rows), paths, rows, 0):
        taken = images if rows_of_all is None else images[rows_of_all]
        first = backbones[names[0]]
        if isinstance(first, EoMTViT):
            found.update(_in_blocks(backbones, paths, rows, Branch(names, rows_of_all, first.embed(taken))))
            continue
        outputs = first(taken)
        for name in names:
            found[name] = tuple(_select(output, rows_of_all, rows[name]) for output in outputs)
    return found


def _in_blocks(
    backbones: Mapping[str, nn.Module], paths: Mapping[str, Path], rows: Rows, trunk: Branch
) -> dict[str, tuple[Any, ...]]:
    """Outputs of the tasks of one stem, block by block; a branch divides where its tasks' blocks differ."""
    outputs: dict[str, list[Any]] = {name: [] for name in trunk.names}
    branches, index = [trunk], 0
    while branches:
        parts = [part for branch in branches for part in _divided(branch, paths, rows, index)]
        branches = []
        for names, rows_here, entering in parts:
            vit: Any = backbones[names[0]]
            tokens, _ = vit.run_blocks(entering, index, index + 1)
            branches.append(Branch(names, rows_here, tokens))
            for name in names:
                vit = backbones[name]
                if index in vit.out_indices:
                    outputs[name].append(vit.output(index, _rows_of(tokens, rows_here, rows[name])))
        index += 1
    return {name: tuple(outs) for name, outs in outputs.items()}


def _divided(branch: Branch, paths: Mapping[str, Path], rows: Rows, index: int) -> list[Branch]:
    """The branch's tasks by their block ``index``; those without one are at their end."""
    names = [name for name in branch.names if len(paths[name]) > index + 1]
    return [
        Branch(same, rows_here, _rows_of(branch.tokens, branch.rows, rows_here))
        for same, rows_here in _groups(names, paths, rows, index + 1)
    ]


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
