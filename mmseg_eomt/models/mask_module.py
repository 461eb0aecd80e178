"""Queries and patch tokens to mask logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, x: Tensor) -> Tensor:
        B, h, w, C = x.shape
        weight = self.conv1.weight.permute(2, 3, 1, 0).reshape(4 * C, C)
        x = F.linear(x, weight, self.conv1.bias.repeat(4))
        x = x.view(B, h, w, 2, 2, C).permute(0, 1, 3, 2, 4, 5).reshape(B, 2 * h, 2 * w, C)
        x = self.conv2(F.gelu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x)


def mask_head(embed_dims: int) -> nn.Sequential:
    """Three-layer MLP that turns a query into the vector its mask is read out with."""
    return nn.Sequential(
        nn.Linear(embed_dims, embed_dims),
        nn.GELU(),
        nn.Linear(embed_dims, embed_dims),
        nn.GELU(),
        nn.Linear(embed_dims, embed_dims),
    )


def upscale(embed_dims: int, patch_size: int) -> nn.Sequential:
    """The ``max(1, log2(patch_size) - 2)`` scale blocks that bring patches to a quarter of the image's side or finer."""
    return nn.Sequential(*[ScaleBlock(embed_dims) for _ in range(max(1, int(math.log2(patch_size)) - 2))])


def mask_logits(query_vectors: Tensor, maps: Tensor) -> Tensor:
    """Dot product of each query (B, Q, C) with each place of the maps (B, h, w, C): (B, Q, h, w)."""
    return torch.einsum('bqc,bhwc->bqhw', query_vectors, maps)
