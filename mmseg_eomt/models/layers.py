"""Layers of a ViT: attention, MLPs, norms, and the rotary position embedding."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmseg_eomt.models.device import on_cpu

HIDDEN_ELEMENTS = 2**21  # of an MLP's hidden values at a time in evaluation on a CPU, 8 MB in fp32


def rotary_embedding(
    grid: tuple[int, int],
    head_dim: int,
    theta: float,
    rescale: float | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Cosine and sine tables of the rotary position embedding.

    A patch is placed by its centre, from -1 to 1 over the image's height and width each, so that any grid has its positions.

    Args:
        grid: Rows and columns of patches.
        head_dim: Width of an attention head; a multiple of 4.
        theta: Base of the periods, from 1 to nearly ``theta``.
        rescale: Where given, all coordinates are multiplied by one random factor from 1 / rescale to rescale, uniform in its
            logarithm: DINOv3's augmentation in training.
        device: Of the result.

    Returns:
        (2, rows · columns, head_dim / 2): cosines, then sines.

    Source: DINOv3 (Siméoni et al., 2025), section 3.2.
    """
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1 for side in grid)
    positions = torch.stack(torch.meshgrid(rows, columns, indexing='ij'), dim=-1).flatten(0, 1)
    if rescale is not None:
        limit = math.log(rescale)
        positions = positions * torch.empty(1, device=device).uniform_(-limit, limit).exp()
    number = head_dim // 4
    frequencies = 1 / theta ** (torch.arange(number, device=device) / number)
    angles = (2 * math.pi * positions[..., None] * frequencies).flatten(1)
    return torch.stack((angles.cos(), angles.sin()))


def for_all_tokens(rope: Tensor, num_tokens: int) -> Tensor:
    """The embedding of the last tokens, (2, n, d), with tokens in front that are not turned: (2, num_tokens, d)."""
    size = (num_tokens - rope.shape[1], rope.shape[2])
    return torch.cat((torch.stack((rope.new_ones(size), rope.new_zeros(size))), rope), dim=1)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn each pair (i, i + d/2) of a head's channels.

    Leaving the front tokens alone by a cosine of 1, and multiplying halves instead of whole heads, takes 0.6 times as long
    forward and backward as cutting the patches out and joining them again (two cores, 1,705 tokens).

    Args:
        x: Queries or keys (B, heads, N, d).
        rope: (2, N, d / 2), as :func:`for_all_tokens` returns.

    Returns:
        (B, heads, N, d) in the dtype of ``x``.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = rope
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens.

    Args:
        embed_dims: Width of a token.
        patch_size: Side of a square patch in pixels.
        bias: Whether the tokens have a bias.

    Shapes: image (B, 3, h * patch_size, w * patch_size) to tokens (B, h * w, embed_dims).
    """

    def __init__(self, embed_dims: int, patch_size: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dims, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 3, H, W) to tokens (B, N, C)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    """Learned factor for each channel of a residual branch (CaiT, Touvron et al. 2021, section 2)."""

    def __init__(self, embed_dims: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dims,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to the same."""
        return x * self.gamma


class KeyBiasFreeLinear(nn.Linear):
    """Queries, keys and values, whose keys have no bias (DINOv3).

    The bias is one vector as elsewhere, so that names stay timm's; its middle third is zero and gets no gradient.
    """

    bias_mask: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        third = out_features // 3
        mask = torch.cat((torch.ones(third), torch.zeros(third), torch.ones(third)))
        self.register_buffer('bias_mask', mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to (…, 3C)."""
        return F.linear(x, self.weight, self.bias * self.bias_mask)


def qkv_linear(embed_dims: int, bias: str) -> nn.Linear:
    """The layer that makes queries, keys and values; ``bias`` names which of them have one: ``'qkv'``, ``'qv'``, ``''``."""
    if bias == 'qv':
        return KeyBiasFreeLinear(embed_dims, 3 * embed_dims)
    return nn.Linear(embed_dims, 3 * embed_dims, bias=bool(bias))


class Attention(nn.Module):
    """Multi-head self-attention in which the first tokens may carry a mask.

    EoMT masks the query rows only. Attention is computed row by row, so the rows with a mask and those without go through
    two calls: the same numbers as one call with an N×N mask, without that mask, and the fast kernel for the many rows
    without one: docs/performance.md.

    Args:
        embed_dims: Width of a token.
        num_heads: Heads; must divide ``embed_dims``.
        qkv_bias: Which of queries, keys and values have a bias: ``'qkv'``, ``'qv'`` or ``''``.
    """

    def __init__(self, embed_dims: int, num_heads: int, qkv_bias: str = 'qkv') -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = qkv_linear(embed_dims, qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, query_mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: Tokens (B, N, embed_dims).
            query_mask: None, or a boolean tensor (B, Q, N) for the first Q tokens: True where they may attend.
            rope: None, or cosines and sines (2, N, embed_dims / heads / 2) of a rotary position embedding.

        Returns:
            Tokens (B, N, embed_dims).
        """
        B, N, C = x.shape
        # (B, N, 3C) to (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        if on_cpu(qkv):
            qkv = qkv.contiguous()  # rows of one head side by side are read faster at 1024×1024, the copy included
        q, k, v = qkv.unbind(0)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        if query_mask is None:
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        else:
            num_queries = query_mask.shape[1]
            masked = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, attn_mask=query_mask[:, None])
            free = F.scaled_dot_product_attention(q[:, :, num_queries:], k, v)
            out = torch.cat((masked.transpose(1, 2), free.transpose(1, 2)), dim=1)
        return self.proj(out.reshape(B, N, C))


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, embed_dims: int, hidden_dims: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to the same."""
        if self.activation is F.gelu and on_cpu(x) and self._is_plain():
            return self._some_at_a_time(x)
        return self.fc2(self.activation(self.fc1(x)))

    def _is_plain(self) -> bool:
        """Whether the layers are as they were built, and nothing but their result is wanted."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        return all(type(layer) is nn.Linear and not has_hooks(layer) for layer in (self.fc1, self.fc2))

    def _some_at_a_time(self, x: Tensor) -> Tensor:
        # hidden values of all tokens would be two maps of four times their size, in pages that the system has to give anew
        tokens = x.flatten(0, -2).split(max(1, HIDDEN_ELEMENTS // self.fc1.out_features))
        return torch.cat([self.fc2(torch.ops.aten.gelu_(self.fc1(part))) for part in tokens]).view_as(x)


class SwiGLU(nn.Module):
    """Gated MLP: ``fc1`` holds gate and value, in this order (timm's ``SwiGLUPacked``)."""

    def __init__(self, embed_dims: int, hidden_dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, 2 * hidden_dims)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) to the same."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


MLPS: dict[str, Callable[[int, int], nn.Module]] = {
    'gelu': partial(Mlp, activation=F.gelu),
    'gelu_tanh': partial(Mlp, activation=partial(F.gelu, approximate='tanh')),
    'quick_gelu': partial(Mlp, activation=quick_gelu),
    'swiglu': SwiGLU,
}


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        embed_dims: Width of a token.
        num_heads: Attention heads.
        mlp: One of :data:`MLPS`.
        mlp_hidden_dims: Hidden width of the MLP; of each half for ``'swiglu'``.
        layer_scale_init: First value of LayerScale; None for a block without.
        norm_eps: Epsilon of the norms.
        qkv_bias: As :class:`Attention`'s.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        mlp: str,
        mlp_hidden_dims: int,
        layer_scale_init: float | None,
        norm_eps: float,
        qkv_bias: str,
    ) -> None:
        super().__init__()
        scales = [nn.Identity() if layer_scale_init is None else LayerScale(embed_dims, layer_scale_init) for _ in range(2)]
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = Attention(embed_dims, num_heads, qkv_bias)
        self.ls1 = scales[0]
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = MLPS[mlp](embed_dims, mlp_hidden_dims)
        self.ls2 = scales[1]

    def forward(self, x: Tensor, query_mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C); ``query_mask`` and ``rope`` as in :class:`Attention`."""
        x = _added(x, self.attn(self.norm1(x), query_mask, rope), self.ls1)
        return _added(x, self.mlp(self.norm2(x)), self.ls2)


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches or changes what goes into a module or comes out of it."""
    return bool(module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks)


def _added(x: Tensor, branch: Tensor, scale: nn.Module) -> Tensor:
    """A residual branch on top of its input, in one pass where its scale is as it was built."""
    if type(scale) is LayerScale and not has_hooks(scale):
        return torch.addcmul(x, branch, scale.gamma)
    return x + scale(branch)


def recomputed(again: bool, function: Callable, *args: object) -> Any:
    """``function(*args)``, with activation checkpointing where ``again``."""
    if again and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)


def init_vit_linears(module: nn.Module) -> None:
    """Draw every linear layer from a normal with deviation 0.02 cut at two, zero the biases (timm's ViT)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
