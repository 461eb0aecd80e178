"""Queries and patch tokens to mask logits."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_eomt.models.layers import has_hooks
from mmseg_eomt.models.mask_rows import BlockWeights, logits_by_rows

STRIP_ELEMENTS = 7 * 2**20  # of the largest map computed at once on a CPU, 28 MB: from 32 MB on, glibc asks for new pages


class ScaleBlock(nn.Module):
    """Doubles a map's side: 2×2 transposed convolution, GELU, depthwise 3×3 convolution, LayerNorm.

    It works on channels-last maps, the layout of tokens: the transposed convolution, whose windows do not overlap, is a
    linear layer there, and the norm needs no transposition.

    Shapes: (B, h, w, C) to (B, 2h, 2w, C).

    Source: public implementation ``models/scale_block.py``.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(embed_dims, embed_dims, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(embed_dims, embed_dims, kernel_size=3, padding=1, groups=embed_dims, bias=False)
        self.norm = nn.LayerNorm(embed_dims, eps=1e-6)

    def linear(self) -> tuple[Tensor, Tensor]:
        """The transposed convolution as a linear layer: weight (4C, C) and bias (4C), a position's four values in a row."""
        weight, bias = self.conv1.weight, cast(Tensor, self.conv1.bias)
        return weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)

    def weights(self) -> BlockWeights:
        """What the block computes with."""
        return BlockWeights(*self.linear(), self.conv2.weight, self.norm.weight, self.norm.bias, self.norm.eps)

    def is_plain(self) -> bool:
        """Whether the block is as it was built: PEFT may have put layers in, and others hooks on them."""
        layers = (self, self.conv1, self.conv2, self.norm)
        kinds = (ScaleBlock, nn.ConvTranspose2d, nn.Conv2d, nn.LayerNorm)
        return all(type(layer) is kind and not has_hooks(layer) for layer, kind in zip(layers, kinds))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to (B, 2h, 2w, C)."""
        B, h, w, C = x.shape
        if type(self.conv1) is nn.ConvTranspose2d:
            x = F.linear(x, *self.linear()).view(B, h, w, 2, 2, C).permute(0, 1, 3, 2, 4, 5).reshape(B, 2 * h, 2 * w, C)
        else:
            x = self.conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(self.conv2(F.gelu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class _Refine(torch.autograd.Function):
    """A scale block after its linear layer and, where queries are given, their dot product with the result.

    Autograd would keep four maps for the backward pass: before and after the GELU, before and after the norm. This keeps
    the two from which GELU and norm follow in little time, and shuffles the four values of a position within
    those two passes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, conv: Tensor, scale: Tensor, shift: Tensor, eps: float, queries: Tensor | None
    ) -> Tensor:
        C = len(scale)
        with torch.autocast(x.device.type, enabled=False):  # on a GPU it would make the norm's result fp32
            maps = F.conv2d(_activated(x, C).permute(0, 3, 1, 2), conv, padding=1, groups=C).permute(0, 2, 3, 1)
            out, mean, rstd = torch.native_layer_norm(maps, (C,), scale, shift, eps)
            ctx.save_for_backward(x, maps, mean, rstd, conv, scale, shift, queries)
            ctx.eps = eps
            return out if queries is None else _dot(queries, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, maps, mean, rstd, conv, scale, shift, queries = ctx.saved_tensors
        (B, h, w), C = x.shape[:3], len(scale)
        grad_queries = None
        if queries is not None:
            out = torch.native_layer_norm(maps, (C,), scale, shift, ctx.eps)[0]
            grad, grad_queries = _dot_backward(grad.flatten(2), queries, out.flatten(1, 2))
            grad = grad.view(maps.shape)
            del out
        aten = torch.ops.aten
        grad, grad_scale, grad_shift = aten.native_layer_norm_backward(
            grad.contiguous(), maps, (C,), mean, rstd, scale, shift, [True, True, True]
        )
        one, none = [1, 1], [0, 0]
        grad, grad_conv, _ = aten.convolution_backward(
            grad.permute(0, 3, 1, 2),
            _activated(x, C).permute(0, 3, 1, 2),
            conv,
            None,
            one,
            one,
            one,
            False,
            none,
            C,
            [True, True, False],
        )
        grad = grad.permute(0, 2, 3, 1).reshape(B, h, 2, w, 2, C).permute(0, 1, 3, 2, 4, 5)
        grad_x = torch.empty_like(x)
        places = (B, h, w, 2, 2, C)
        aten.gelu_backward.grad_input(grad, x.view(places), grad_input=grad_x.view(places))
        return grad_x, grad_conv, grad_scale, grad_shift, None, grad_queries


def _activated(x: Tensor, channels: int) -> Tensor:
    """GELU of an expanded map, the four values of each position side by side: (B, h, w, 4C) to (B, 2h, 2w, C)."""
    B, h, w = x.shape[:3]
    out = x.new_empty(B, h, 2, w, 2, channels)
    torch.ops.aten.gelu.out(x.view(B, h, w, 2, 2, channels).permute(0, 1, 3, 2, 4, 5), out=out)
    return out.view(B, 2 * h, 2 * w, channels)


def _dot(queries: Tensor, maps: Tensor) -> Tensor:
    """Dot product of each query (B, Q, C) with each position of the maps (B, h, w, C): (B, Q, h, w)."""
    return torch.bmm(queries, maps.flatten(1, 2).transpose(1, 2)).unflatten(2, maps.shape[1:3])


def _dot_backward(grad: Tensor, queries: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the maps (B, h·w, C) and the queries (B, Q, C) from the logits' (B, Q, h·w).

    Most queries are matched to nothing and have no gradient; on a CPU, where looking costs little, they are left out.
    """
    matched: Tensor | slice = slice(None)
    if len(grad) == 1 and _on_cpu(grad):
        matched = grad[0].any(1).nonzero()[:, 0]
    part = grad[:, matched]
    grad_queries = torch.zeros_like(queries)
    grad_queries[:, matched] = torch.bmm(part, maps)
    return torch.bmm(part.transpose(1, 2), queries[:, matched]), grad_queries


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == 'cpu'


def mask_head(embed_dims: int) -> nn.Sequential:
    """Three-layer MLP that turns a query into the vector its mask is read out with."""
    return nn.Sequential(
        nn.Linear(embed_dims, embed_dims),
        nn.GELU(),
        nn.Linear(embed_dims, embed_dims),
        nn.GELU(),
        nn.Linear(embed_dims, embed_dims),
    )


class Upscale(nn.Sequential):
    """Scale blocks that bring patches to a quarter of the image's side or finer, and the queries' dot product with them.

    For the backward pass two maps per block are kept in place of four. On a CPU, one image and some rows are computed at a
    time, in memory that the allocator keeps at hand. The numbers are those of ``queries · blocks(patches)``;
    docs/performance.md has what it brings.

    Args:
        embed_dims: Width of a token.
        patch_size: Side of a patch in pixels; it makes n = ``max(1, log2(patch_size) - 2)`` blocks.
    """

    def __init__(self, embed_dims: int, patch_size: int) -> None:
        super().__init__(*[ScaleBlock(embed_dims) for _ in range(max(1, int(math.log2(patch_size)) - 2))])

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]  # a Sequential takes one
        """Read each query's mask out of the upscaled patches.

        Args:
            queries: Vectors of the queries (B, Q, C), as :func:`mask_head` returns.
            patches: (B, h, w, C).

        Returns:
            (B, Q, 2ⁿ·h, 2ⁿ·w).
        """
        blocks = [block for block in self if isinstance(block, ScaleBlock) and block.is_plain()]
        if len(blocks) < len(self) or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return _dot(queries, super().forward(patches))
        rows = patches.shape[1]
        if _on_cpu(patches) and not torch.is_grad_enabled():
            return logits_by_rows(queries, patches, [block.weights() for block in blocks])
        if not _on_cpu(patches):
            return _rows_of_logits(queries, patches, blocks, 0, rows)
        num_strips = min(rows, -(-math.prod(patches.shape[1:]) * 4 ** len(self) // STRIP_ELEMENTS))
        edges = [rows * i // num_strips for i in range(num_strips + 1)]
        return torch.cat(
            [
                torch.cat([_rows_of_logits(*image, blocks, low, high) for low, high in itertools.pairwise(edges)], dim=2)
                for image in zip(queries.split(1), patches.split(1))
            ]
        )


def _rows_of_logits(queries: Tensor, patches: Tensor, blocks: Sequence[ScaleBlock], low: int, high: int) -> Tensor:
    """Logits for the patches' rows from ``low`` to ``high``, with a row of neighbours on either side for convolving."""
    above, below = int(low > 0), int(high < patches.shape[1])
    x = patches[:, low - above : high + below]
    *first, last = blocks
    for block in first:
        x = _refined(x, block)
        x = x[:, above : x.shape[1] - below]  # the outermost row lacked its neighbour
    logits = _refined(x, last, queries)
    return logits[:, :, 2 * above : logits.shape[2] - 2 * below]


def _refined(x: Tensor, block: ScaleBlock, queries: Tensor | None = None) -> Tensor:
    x = F.linear(x, *block.linear())  # in the lower precision of autocast, as is the rest
    weights = [weight.to(x.dtype) for weight in (block.conv2.weight, block.norm.weight, block.norm.bias)]
    return _Refine.apply(x, *weights, block.norm.eps, None if queries is None else queries.to(x.dtype))
