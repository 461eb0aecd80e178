"""Queries and patch tokens to mask logits."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_eomt.models.device import on_cpu
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
        return BlockWeights(*self.linear(), self.conv2.weight, self.norm.weight, self.norm.bias)

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


class _Masks(torch.autograd.Function):
    """Scale blocks one after the other, and the queries' dot product with the last one's map.

    Autograd would keep five maps per block for the backward pass: the linear layer's input, before and after the GELU,
    before and after the norm. This keeps one, before the GELU: the others follow from it in little time, without a matrix
    product. The four values of a position are shuffled within the passes of the GELU.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, patches: Tensor, eps: float, trim: tuple[int, int], *weights: Tensor) -> Tensor:
        kept: list[Tensor] = []
        x = patches
        for block in _of_each_block(weights):
            x = x[:, trim[0] : x.shape[1] - trim[1]] if kept else x
            kept.append(F.linear(x, block.weight, block.bias))
            x = _refined(kept[-1], block, eps)
        ctx.save_for_backward(queries, patches, *kept, *weights)
        ctx.eps, ctx.trim = eps, trim
        return _dot(queries, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, patches, *rest = ctx.saved_tensors
        num_blocks = len(rest) // (1 + len(BlockWeights._fields))
        kept, blocks = rest[:num_blocks], _of_each_block(rest[num_blocks:])
        needed = [_of_each_block(ctx.needs_input_grad[4:])[i] for i in range(num_blocks)]
        grads: list[Any] = []
        grad_queries: Tensor | None = None
        grad_x: Any = None
        for i in reversed(range(num_blocks)):
            activated = _activated(kept[i], len(blocks[i].scale))
            maps = _convolved(activated, blocks[i].conv)
            out, mean, rstd = _normed(maps, blocks[i], ctx.eps)
            if grad_x is None:
                grad_maps, grad_queries = _dot_backward(grad.flatten(2), queries, out.flatten(1, 2))
                grad_maps = grad_maps.view(maps.shape)
            else:
                out = out[:, ctx.trim[0] : out.shape[1] - ctx.trim[1]]
                grads[0][:2] = _linear_backward(grad_x, out, needed[i + 1])
                grad_maps = F.pad(grad_x @ blocks[i + 1].weight, (0, 0, 0, 0, *ctx.trim))
            del out, grad_x
            grad_maps, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
                grad_maps, maps, (maps.shape[-1],), mean, rstd, blocks[i].scale, blocks[i].shift, [True, *needed[i][3:]]
            )
            del maps
            grad_maps, grad_conv = _convolution_backward(grad_maps, activated, blocks[i].conv, needed[i].conv)
            del activated
            grad_x = _activated_backward(grad_maps, kept[i])
            grads.insert(0, [None, None, grad_conv, grad_scale, grad_shift])
            del grad_maps
        grads[0][:2] = _linear_backward(grad_x, patches, needed[0])
        grad_patches = grad_x @ blocks[0].weight if ctx.needs_input_grad[1] else None
        return grad_queries, grad_patches, None, None, *(grad for block in grads for grad in block)


def _of_each_block(values: Sequence[Any]) -> list[BlockWeights]:
    size = len(BlockWeights._fields)
    return [BlockWeights(*values[i : i + size]) for i in range(0, len(values), size)]


def _refined(x: Tensor, block: BlockWeights, eps: float) -> Tensor:
    """A scale block after its linear layer: (B, h, w, 4C) to (B, 2h, 2w, C)."""
    return _normed(_convolved(_activated(x, len(block.scale)), block.conv), block, eps)[0]


def _convolved(maps: Tensor, conv: Tensor) -> Tensor:
    return F.conv2d(maps.permute(0, 3, 1, 2), conv, padding=1, groups=len(conv)).permute(0, 2, 3, 1)


def _normed(maps: Tensor, block: BlockWeights, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(maps.device.type, enabled=False):  # on a GPU it would make the result fp32
        return torch.native_layer_norm(maps, (maps.shape[-1],), block.scale, block.shift, eps)


def _convolution_backward(grad: Tensor, maps: Tensor, conv: Tensor, of_conv: bool) -> tuple[Tensor, Tensor | None]:
    grad, maps = grad.permute(0, 3, 1, 2), maps.permute(0, 3, 1, 2)
    one, none = [1, 1], [0, 0]
    grad_maps, grad_conv, _ = torch.ops.aten.convolution_backward(
        grad, maps, conv, None, one, one, one, False, none, len(conv), [True, of_conv, False]
    )
    return grad_maps.permute(0, 2, 3, 1), grad_conv


def _linear_backward(grad: Tensor, x: Tensor, needed: BlockWeights) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias, whose input was ``x``."""
    grad = grad.flatten(0, 2)
    return grad.T @ x.flatten(0, 2) if needed.weight else None, grad.sum(0) if needed.bias else None


def _activated(x: Tensor, channels: int) -> Tensor:
    """GELU of an expanded map, the four values of each position side by side: (B, h, w, 4C) to (B, 2h, 2w, C)."""
    B, h, w = x.shape[:3]
    out = x.new_empty(B, h, 2, w, 2, channels)
    torch.ops.aten.gelu.out(x.view(B, h, w, 2, 2, channels).permute(0, 1, 3, 2, 4, 5), out=out)
    return out.view(B, 2 * h, 2 * w, channels)


def _activated_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of an expanded map (B, h, w, 4C) from that of :func:`_activated`'s result."""
    B, h, w = x.shape[:3]
    places = (B, h, w, 2, 2, grad.shape[-1])
    grad = grad.reshape(B, h, 2, w, 2, -1).permute(0, 1, 3, 2, 4, 5)
    grad_x = torch.empty_like(x)
    torch.ops.aten.gelu_backward.grad_input(grad, x.view(places), grad_input=grad_x.view(places))
    return grad_x


def _dot(queries: Tensor, maps: Tensor) -> Tensor:
    """Dot product of each query (B, Q, C) with each position of the maps (B, h, w, C): (B, Q, h, w)."""
    return torch.bmm(queries, maps.flatten(1, 2).transpose(1, 2)).unflatten(2, maps.shape[1:3])


def _dot_backward(grad: Tensor, queries: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the maps (B, h·w, C) and the queries (B, Q, C) from the logits' (B, Q, h·w).

    Most queries are matched to nothing and have no gradient; on a CPU, where looking costs little, they are left out.
    """
    matched: Tensor | slice = slice(None)
    if len(grad) == 1 and on_cpu(grad):
        matched = grad[0].any(1).nonzero()[:, 0]
    part = grad[:, matched]
    grad_queries = torch.zeros_like(queries)
    grad_queries[:, matched] = torch.bmm(part, maps)
    return torch.bmm(part.transpose(1, 2), queries[:, matched]), grad_queries


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

    For the backward pass one map per block is kept in place of five. On a CPU, one image and some rows are computed at a
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
        # in the lower precision of autocast, as the plain module would
        device = patches.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else patches.dtype
        queries, patches = queries.to(dtype), patches.to(dtype)
        weights = [weight.to(dtype) for block in blocks for weight in block.weights()]
        eps, rows = blocks[0].norm.eps, patches.shape[1]
        if on_cpu(patches) and not torch.is_grad_enabled():
            return logits_by_rows(queries, patches, _of_each_block(weights), eps)
        if not on_cpu(patches):
            return _rows_of_logits(queries, patches, eps, weights, 0, rows)
        num_strips = min(rows, -(-math.prod(patches.shape[1:]) * 4 ** len(self) // STRIP_ELEMENTS))
        edges = [rows * i // num_strips for i in range(num_strips + 1)]
        return torch.cat(
            [
                torch.cat([_rows_of_logits(*image, eps, weights, *strip) for strip in itertools.pairwise(edges)], dim=2)
                for image in zip(queries.split(1), patches.split(1))
            ]
        )


def _rows_of_logits(queries: Tensor, patches: Tensor, eps: float, weights: Sequence[Tensor], low: int, high: int) -> Tensor:
    """Logits for the patches' rows from ``low`` to ``high``, with a row of neighbours on either side for convolving."""
    above, below = int(low > 0), int(high < patches.shape[1])
    x = patches[:, low - above : high + below]
    # after each block, the outermost row lacked its neighbour
    if torch.is_grad_enabled():
        logits = _Masks.apply(queries, x, eps, (above, below), *weights)
    else:
        for i, block in enumerate(_of_each_block(weights)):
            x = x[:, above : x.shape[1] - below] if i else x
            x = _refined(F.linear(x, block.weight, block.bias), block, eps)
        logits = _dot(queries, x)
    return logits[:, :, 2 * above : logits.shape[2] - 2 * below]
