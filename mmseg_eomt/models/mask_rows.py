"""The mask module in evaluation on a CPU: some rows at a time, each computed once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_ELEMENTS = 3 * 2**18  # of the largest map at a time, 3 MB in fp32: it stays in a core's caches


class BlockWeights(NamedTuple):
    """Of a scale block: its linear layer (4C, C) and (4C), depthwise convolution (C, 1, 3, 3), and norm (C)."""

    weight: Any
    bias: Any
    conv: Any
    scale: Any
    shift: Any


def logits_by_rows(queries: Tensor, patches: Tensor, blocks: Sequence[BlockWeights], eps: float) -> Tensor:
    """Dot product of each query with the upscaled patches, without gradients.

    A block passes its rows on to the next as they come. Its convolution needs a row from above and one from below: the last
    two activated rows are kept for those to come, so that no row is computed twice.

    Args:
        queries: (B, Q, C).
        patches: (B, h, w, C).
        blocks: Of n scale blocks, in the dtype of the patches.
        eps: Of their norms.

    Returns:
        (B, Q, 2ⁿ·h, 2ⁿ·w) in memory with the queries last, as :func:`.pixel_scores` reads them.
    """
    B, h, w, C = patches.shape
    scale = 2 ** len(blocks)
    step = max(1, ROW_ELEMENTS // (scale * scale * w * C))
    logits: Tensor | None = None
    for image in range(B):
        maps: Iterable[Tensor] = patches[image : image + 1].split(step, dim=1)
        for block in blocks:
            maps = _upscaled(maps, block, eps)
        row = 0
        for part in maps:
            if logits is None:
                logits = part.new_empty(B, scale * h, scale * w, queries.shape[1])
            with torch.autocast('cpu', enabled=False):
                torch.mm(part.flatten(0, 2), queries[image].T, out=logits[image, row : row + part.shape[1]].flatten(0, 1))
            row += part.shape[1]
    assert logits is not None
    return logits.permute(0, 3, 1, 2)


def _upscaled(maps: Iterable[Tensor], block: BlockWeights, eps: float) -> Iterator[Tensor]:
    """Rows (1, n, w, C) of a map to those of the block's: first one row less than 2n, at the end the row that lacks."""
    above: Tensor | None = None  # the last two activated rows
    for x in maps:
        x = F.linear(x, block.weight, block.bias)
        n, w, C = x.shape[1], x.shape[2], x.shape[3] // 4
        rows = x.new_empty(1, 2 + 2 * n, 2 * w, C)
        rows[:, :2] = 0 if above is None else above
        places = (1, n, 2, w, 2, C)
        torch.ops.aten.gelu.out(x.view(1, n, w, 2, 2, C).permute(0, 1, 3, 2, 4, 5), out=rows[:, 2:].view(places))
        yield _refined(rows if above is not None else rows[:, 1:], block, eps)
        above = rows[:, -2:]
    assert above is not None
    yield _refined(F.pad(above, (0, 0, 0, 0, 0, 1)), block, eps)


def _refined(rows: Tensor, block: BlockWeights, eps: float) -> Tensor:
    """Activated rows (1, n + 2, w, C) through convolution and norm: (1, n, w, C)."""
    C = rows.shape[-1]
    with torch.autocast('cpu', enabled=False):
        rows = F.conv2d(rows.permute(0, 3, 1, 2), block.conv, padding=(0, 1), groups=C).permute(0, 2, 3, 1)
        return F.layer_norm(rows, (C,), block.scale, block.shift, eps)
