"""PMT's decode head: blocks of their own on several outputs of a frozen ViT."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.layers import Block, LayerScale, Mlp, init_vit_linears, rotary_embedding
from mmseg_eomt.models.query_head import Features, QueryHead

NORM_EPS = 1e-5
ROPE_THETA = 100.0
ROPE_RESCALE = 2.0


class Lateral(nn.Module):
    """One output of the backbone on its way to the decoder: batch norm, residual MLP, a factor per channel.

    Args:
        in_channels: Channels of the output; where they differ from ``embed_dims``, a linear layer brings them to it.
        embed_dims: Width of the decoder.

    Shapes: (B, N, in_channels) to (B, N, embed_dims). The batch norm takes all tokens of all images for one batch.
    """

    def __init__(self, in_channels: int, embed_dims: int) -> None:
        super().__init__()
        self.input_projection = nn.Identity() if in_channels == embed_dims else nn.Linear(in_channels, embed_dims)
        self.norm = nn.BatchNorm1d(embed_dims)
        self.mlp = Mlp(embed_dims, embed_dims // 2, F.gelu)
        self.scale = LayerScale(embed_dims, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, in_channels) to (B, N, embed_dims)."""
        x = self.input_projection(x)
        x = self.norm(x.flatten(0, 1)).view_as(x)
        return self.scale(x + self.mlp(x))


@MODELS.register_module()
class PMTHead(QueryHead):
    """The Plain Mask Decoder: queries and the sum of a few outputs of the backbone, in transformer blocks of its own.

    The backbone stays frozen as published; :class:`.LateralViT` gives what the decoder takes. How the blocks are masked and
    supervised is described at :class:`QueryHead`.

    Args:
        num_classes: K, without "no object".
        arch: As the backbone's; its width and number of heads are the decoder's. Default: ``'large'``.
        in_channels: Channels of the outputs, one number for all or one for each. Default: the width of ``arch``.
        in_index: Which of the backbone's outputs to use; they have one stride. Default: (0, 1, 2, 3).
        num_blocks: Blocks J. Default: 6.
        mlp_hidden_dims: Hidden width of the blocks' MLPs. Default: 4 × the width of ``arch``.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` reads the decoder of a public PMT. Default: None.
        kwargs: ``num_queries``, ``patch_size``, ``num_points``, ``class_weight``, ``with_cp`` and the like: as of
            :class:`QueryHead`.

    Raises:
        ValueError: If a size, the backbone's outputs or the weights do not fit, with what was given and expected.

    Source: PMT (tue-mps/pmt); public implementation ``image/models/pmt.py`` and ``pmd.py``.
    """

    laterals: nn.ModuleList
    in_index: tuple[int, ...]

    def __init__(
        self,
        num_classes: int,
        arch: str | dict = 'large',
        in_channels: int | Sequence[int] | None = None,
        in_index: Sequence[int] = (0, 1, 2, 3),
        num_blocks: int = 6,
        mlp_hidden_dims: int | None = None,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        vit = get_arch(arch)
        dims, indices = vit.embed_dims, tuple(in_index)
        given = in_channels or dims
        channels = (given,) * len(indices) if isinstance(given, int) else tuple(given)
        if num_blocks < 1 or not indices or len(channels) != len(indices):
            raise ValueError(
                f'PMTHead takes one output of the backbone or more, as many in_channels, and num_blocks of at least 1; got '
                f'in_index={indices}, in_channels={channels} and num_blocks={num_blocks}.'
            )
        if vit.head_dims % 4:
            raise ValueError(f'Rotary positions need a head width divisible by 4, got {vit.head_dims}: set num_heads.')
        hidden = mlp_hidden_dims or 4 * dims
        laterals = nn.ModuleList(Lateral(number, dims) for number in channels)
        blocks = nn.ModuleList(Block(dims, vit.num_heads, 'gelu', hidden, 1.0, NORM_EPS, 'qv') for _ in range(num_blocks))
        for part in (laterals, blocks):
            init_vit_linears(part)
        super().__init__(num_classes, vit, dict(laterals=laterals), blocks, NORM_EPS, indices, init_cfg=init_cfg, **kwargs)
        self.in_channels = channels

    def tokens(self, feats: Features) -> tuple[list[Tensor], tuple[int, int], Tensor | None]:
        """The sum of the outputs at ``in_index``, each on its own way.

        Each is a map (B, C, h, w), or a list of a map, prefix tokens (B, P, C) and the rotary position embedding
        (2, h · w, d) of a backbone with one.
        """
        features, prefixes, rope = zip(*(self._split(i, feats[i]) for i in self.in_index))
        grids = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        lengths = [0 if prefix is None else prefix.shape[1] for prefix in prefixes]
        if grids != grids[:1] * len(grids) or lengths != lengths[:1] * len(lengths):
            raise ValueError(
                f'PMTHead adds the outputs at in_index={self.in_index}, which have {grids} positions and {lengths} prefix '
                f'tokens: name outputs of one stride, or bring them to one with a neck.'
            )
        total: Tensor | None = None
        for lateral, feature, prefix in zip(self.laterals, features, prefixes):
            x = feature.flatten(2).transpose(1, 2)  # (B, C, h, w) to patch tokens (B, h·w, C)
            x = lateral(x if prefix is None else torch.cat((prefix, x), dim=1))
            total = x if total is None else total + x
        assert total is not None  # there is one output at least
        return [total], grids[0], self._rope(rope[-1], grids[0], total.device)

    def _split(self, index: int, output: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Map, prefix tokens and rotary position embedding of a backbone's output."""
        parts: list[Any] = [output] if isinstance(output, Tensor) else list(output)
        feature, prefix, rope = parts + [None] * (3 - len(parts))
        expected = self.in_channels[self.in_index.index(index)]
        if feature.shape[1] != expected:
            raise ValueError(
                f"The backbone's output {index} has {feature.shape[1]} channels, but PMTHead expects {expected}: give it "
                f'the same arch, or in_channels={feature.shape[1]}.'
            )
        return feature, prefix[:, None] if prefix is not None and prefix.ndim == 2 else prefix, rope

    def _rope(self, rope: Tensor | None, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The backbone's rotary position embedding, or one of our own for learned positions."""
        if rope is not None:
            return rope
        rescale = ROPE_RESCALE if self.training else None
        return rotary_embedding(grid, self.arch.head_dims, ROPE_THETA, rescale, device)
