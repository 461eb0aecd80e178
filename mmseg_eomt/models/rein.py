"""Rein: learned tokens refine a frozen ViT's patches after each block."""

import math
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens
from mmseg_eomt.models.layers import recomputed
from mmseg_eomt.models.query_head import Features


class Rein(nn.Module):
    """Tokens of each block, and the two linear layers that all blocks share.

    With the patches f (n, C) after block i and its tokens T = A · B (m, C), A (m, r), B (r, C)::

        S  = softmax(f · Tᵀ / √C)                      (n, m)
        f' = S[:, 1:] · (T[1:] · W_T + b_T)            the first token's share is dropped: a patch may stay as it is
        f + (f' + f) · W_f + b_f                       goes into the next block

    The paper leaves the initial values open. Here W_f and b_f are zero, so that a model starts as it was without Rein; after
    the first step, gradients reach the tokens. Those have unit variance: their products with features, over √C, are then
    of the features' size, and the softmax is neither flat nor saturated. W_T starts as PyTorch's linear layers do.

    Args:
        num_blocks: Blocks N.
        embed_dims: Width C of a patch.
        num_tokens: Tokens m of each block.
        rank: Rank r of the tokens.

    Raises:
        ValueError: If ``num_tokens`` or ``rank`` is too small or too large.

    Source: Rein (Wei et al., CVPR 2024, arXiv 2312.04265), sections 3.2 and 3.4, with shared layers and low-rank tokens.
    """

    def __init__(self, num_blocks: int, embed_dims: int, num_tokens: int, rank: int) -> None:
        super().__init__()
        if num_tokens < 2 or not 1 <= rank <= embed_dims:
            raise ValueError(
                f'Rein needs at least 2 tokens, of which one is dropped, and a rank from 1 to {embed_dims}, the width of '
                f'the ViT; got {num_tokens} tokens of rank {rank}.'
            )
        self.tokens_a = nn.Parameter(torch.randn(num_blocks, num_tokens, rank) / math.sqrt(rank))
        self.tokens_b = nn.Parameter(torch.randn(num_blocks, rank, embed_dims))
        self.token_projection = nn.Linear(embed_dims, embed_dims)
        self.feature_projection = nn.Linear(embed_dims, embed_dims)
        nn.init.zeros_(self.feature_projection.weight)
        nn.init.zeros_(self.feature_projection.bias)

    def tokens(self) -> Tensor:
        """Tokens of all blocks, (N, m, C)."""
        return self.tokens_a @ self.tokens_b

    def forward(self, index: int, x: Tensor, num_patches: int) -> Tensor:
        """Refine the patches after a block.

        Args:
            index: Number of the block.
            x: All tokens (B, …, C), the patches last. Those before them (prefix tokens, queries) stay as they are.
            num_patches: Patches n.

        Returns:
            The same shape.
        """
        first = x.shape[1] - num_patches
        return torch.cat((x[:, :first], self.refine(index, x[:, first:])), dim=1)

    def refine(self, index: int, patches: Tensor) -> Tensor:
        """Patches (B, n, C) after block ``index`` to the same, refined."""
        tokens = self.tokens_a[index] @ self.tokens_b[index]  # (m, C)
        shares = (patches @ tokens.T / math.sqrt(tokens.shape[1])).softmax(-1)  # (B, n, m)
        instances = shares[..., 1:] @ self.token_projection(tokens[1:])
        return patches + self.feature_projection(instances + patches)


class LinkedRein(Rein):
    """Rein of the joint blocks, whose tokens and the backbone's are linked to the queries.

    With the tokens T_i (m, C) of all blocks of the ViT, N in number::

        Q_i = T_i · W_Q + b_Q                          (m, d)
        Q   = [max_i Q_i | mean_i Q_i | Q_N] · W + b   (m, C)

    The paper's Q is the object queries of Mask2Former. Here it is added to the learned ones: W and b are zero at the start,
    which leaves a trained EoMT's queries as they are.

    Args:
        args: As of :class:`Rein`.
        link_dims: Width d. In the paper it is 256, that of Mask2Former's queries; ours are as wide as the ViT, and d is a
            bottleneck.

    Source: Rein, section 3.3.
    """

    def __init__(self, *args: int, link_dims: int) -> None:
        super().__init__(*args)
        embed_dims = self.tokens_b.shape[-1]
        self.query_projection = nn.Linear(embed_dims, link_dims)
        self.query_mix = nn.Linear(3 * link_dims, embed_dims)
        nn.init.zeros_(self.query_mix.weight)
        nn.init.zeros_(self.query_mix.bias)

    def query_offset(self, earlier: Tensor) -> Tensor:
        """What is added to the queries, (m, C), with the backbone's tokens (N', m, C)."""
        linked = self.query_projection(torch.cat((earlier, self.tokens())))  # (N, m, d)
        mean = linked.sum(0) / len(linked)  # ONNX would call a constant mean() as the preprocessor's mean
        return self.query_mix(torch.cat((linked.amax(0), mean, linked[-1]), dim=-1))


@MODELS.register_module()
class ReinViT(EoMTViT):
    """:class:`EoMTViT` with :class:`Rein` after each of its blocks.

    It is made to be trained with the ViT frozen::

        dict(type='LoRAHook', target_modules=[], trainable_modules=['backbone.rein', 'decode_head.query_embed', …])

    Prefix tokens are not refined: the paper's f are the patches. A checkpoint without Rein can start a run, and a model then
    begins as the checkpoint's. Any head takes it; with :class:`ReinHead` the joint blocks are refined too.

    Args:
        args: As of :class:`EoMTViT`.
        num_tokens: Tokens m of each block. Default: 100, as in the paper.
        rank: Rank of the tokens. Default: 16, as in the paper.
        kwargs: As of :class:`EoMTViT`.

    Returns of ``forward``:
        As of :class:`EoMTViT`; the list for the joint blocks has four parts, rotary positions (None for learned ones) and
        the tokens (N, m, C), which other heads than :class:`ReinHead` ignore.

    Raises:
        ValueError: As :class:`EoMTViT` and :class:`Rein`.
    """

    def __init__(self, *args: Any, num_tokens: int = 100, rank: int = 16, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rein = Rein(len(self.blocks), self.arch.embed_dims, num_tokens, rank)

    def run_block(self, index: int, x: Tensor, rope: Tensor | None) -> Tensor:
        """As :class:`EoMTViT`, refined."""
        num_prefix = sum(token.shape[1] for token in (self.cls_token, self.reg_token) if token is not None)
        x = super().run_block(index, x, rope)
        return recomputed(self.with_cp, self.rein, index, x, x.shape[1] - num_prefix)

    def output(self, index: int, tokens: Tokens) -> Any:
        """As :class:`EoMTViT`, with Rein's tokens for the joint blocks."""
        out = super().output(index, tokens)
        return out if isinstance(out, Tensor) else [*out[:2], tokens.rope, self.rein.tokens()]


@MODELS.register_module()
class ReinHead(EoMTHead):
    """:class:`EoMTHead` with :class:`LinkedRein`: patches are refined after each joint block, and queries linked to tokens.

    The joint blocks have linear layers W_T and W_f of their own; only the backbone's blocks share those of
    :class:`ReinViT`. Each query has a token in each block.

    Args:
        args: As of :class:`EoMTHead`.
        rank: Rank of the tokens. Default: 16.
        link_dims: Width of the link. Default: 256.
        kwargs: As of :class:`EoMTHead`.

    Raises:
        ValueError: As :class:`EoMTHead` and :class:`Rein`, or if the backbone is no :class:`ReinViT` or has another number
            of tokens than the head has queries.
    """

    def __init__(self, *args: Any, rank: int = 16, link_dims: int = 256, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sizes = self.num_joint_blocks, self.arch.embed_dims, self.num_queries, rank
        self.joint_rein = LinkedRein(*sizes, link_dims=link_dims)

    def queries(self, feats: Features) -> Tensor:
        """Learned queries (Q, C) and their link to the tokens."""
        output: Any = feats[self.in_index]
        tokens = None if isinstance(output, Tensor) else output[-1]
        if tokens is None or len(output) != 4:
            raise ValueError('ReinHead takes its tokens from a ReinViT: set it as the type of the backbone.')
        if tokens.shape[1] != self.num_queries:
            raise ValueError(
                f'ReinHead links each of its {self.num_queries} queries to a token, and the backbone has {tokens.shape[1]}: '
                f'set num_tokens={self.num_queries} there.'
            )
        return super().queries(feats) + self.joint_rein.query_offset(tokens)

    def run_block(
        self, index: int, x: Tensor, query_mask: Tensor | None, rope: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        """As :class:`EoMTHead`, refined."""
        x = super().run_block(index, x, query_mask, rope, grid)
        return recomputed(self.with_cp, self.joint_rein, index, x, grid[0] * grid[1])
