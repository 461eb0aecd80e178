"""A range of a ViT's blocks, of which some are in a backbone and the last ones in a decode head."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from mmseg_eomt.adapters.inject import ADAPTABLE
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT


def block_range(model: nn.Module, blocks: Sequence[int]) -> tuple[range, int]:
    """The blocks from the first to the last of two, and the number of blocks in the whole ViT.

    Args:
        model: With an :class:`EoMTViT`.
        blocks: First and last block, both included, counted from 0 over the whole ViT; -1 is the last.

    Raises:
        ValueError: If the model has no such ViT, or these are not two of its blocks in their order.
    """
    vits = [part for part in model.modules() if isinstance(part, EoMTViT)]
    if not vits:
        kind = type(getattr(model, 'backbone', model)).__name__
        raise ValueError(
            f'blocks={blocks} are those of an EoMTViT, and the model has a {kind}: name its layers in exclude_modules, or '
            f'set layers_to_transform and layers_pattern in peft.'
        )
    count = min(vit.arch.num_layers for vit in vits)
    pair = list(blocks) if isinstance(blocks, (list, tuple)) else []
    numbers = [block + count * (block < 0) for block in pair if type(block) is int]
    if len(pair) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] < count:
        raise ValueError(
            f'blocks is the first and the last block to adapt, of 0 to {count - 1} here or of -1 for the last, as in '
            f'({count // 3}, -1); got {blocks!r}.'
        )
    return range(numbers[0], numbers[1] + 1), count


def keep_to_blocks(model: nn.Module, config: Any, blocks: Sequence[int]) -> Any:
    """A copy of PEFT's config that excludes the layers of a ViT's other blocks.

    PEFT's own ``layers_to_transform`` would count the blocks of :class:`EoMTHead` from 0 again. Here a block has its number
    in the whole ViT, and layers are excluded by their full names, which PEFT reads by itself out of an adapter's folder.
    Layers outside of the blocks are left to the config's targets.

    Args:
        model: Not adapted yet.
        config: PEFT's config, whose ``exclude_modules`` is a list or None.
        blocks: As of :func:`block_range`.

    Raises:
        ValueError: As of :func:`block_range`.
    """
    kept, _ = block_range(model, blocks)
    others = [
        f'{name}.blocks.{i}.{layer}'.lstrip('.')
        for name, part in model.named_modules()
        if isinstance(part, (EoMTViT, EoMTHead))
        for i, block in enumerate(part.blocks)
        if part.first_block + i not in kept
        for layer, module in block.named_modules()
        if isinstance(module, ADAPTABLE)
    ]
    config = copy.copy(config)
    config.exclude_modules = {*(getattr(config, 'exclude_modules', None) or ()), *others} or None
    return config
