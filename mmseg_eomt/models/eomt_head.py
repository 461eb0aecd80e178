"""The decode head: the ViT's last blocks, run together with learnable queries."""

from collections.abc import Sequence
from typing import Any

from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.layers import init_vit_linears, rotary_embedding
from mmseg_eomt.models.query_head import Features, QueryHead


@MODELS.register_module()
class EoMTHead(QueryHead):
    """Joint blocks on ``[queries | prefix tokens | patches]``, with a class and a mask predicted from each query.

    The blocks are the last of the backbone's ViT. How they are masked and supervised is described at :class:`QueryHead`.

    Args:
        num_classes: K, without "no object".
        arch: As the backbone's: ``'large'``, ``'dinov3_large'``, … or a dict. Default: ``'large'``.
        in_channels: Channels of the backbone's map; where they differ from the width of ``arch``, a 1×1 convolution brings
            them to it. Default: the width of ``arch``.
        in_index: Which of the backbone's outputs to use. Default: -1.
        num_joint_blocks: Joint blocks J. Default: 4.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` reads the last blocks and the final norm from the file that the
            backbone reads, and from an EoMT's the queries and heads too. None starts from random weights. Default: None.
        kwargs: ``num_queries``, ``patch_size``, ``num_points``, ``class_weight``, ``with_cp`` and the like: as of
            :class:`QueryHead`.

    Raises:
        ValueError: If a size, the backbone's map or the weights do not fit; the message says what was given and expected.

    Source: EoMT (Kerssies et al., CVPR 2025), section 3; public implementation ``models/eomt.py``.
    """

    input_projection: nn.Module
    in_index: int

    def __init__(
        self,
        num_classes: int,
        arch: str | dict = 'large',
        in_channels: int | None = None,
        in_index: int = -1,
        num_joint_blocks: int = 4,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        vit = get_arch(arch)
        if not 1 <= num_joint_blocks <= vit.num_layers:
            raise ValueError(
                f'num_joint_blocks must be from 1 to {vit.num_layers}, got {num_joint_blocks}: '
                f'without joint blocks the queries never see the image.'
            )
        channels = in_channels or vit.embed_dims
        projection = nn.Identity() if channels == vit.embed_dims else nn.Conv2d(channels, vit.embed_dims, 1)
        blocks = nn.ModuleList(vit.build_block() for _ in range(num_joint_blocks))
        init_vit_linears(blocks)
        front = dict(input_projection=projection)
        super().__init__(num_classes, vit, front, blocks, vit.norm_eps, in_index, init_cfg=init_cfg, **kwargs)
        self.num_joint_blocks = num_joint_blocks
        self.in_channels = channels

    @property
    def first_block(self) -> int:
        """The number of ``blocks.0`` in the whole ViT: this part holds its last blocks."""
        return self.arch.num_layers - self.num_joint_blocks

    def tokens(self, feats: Features) -> tuple[list[Tensor], tuple[int, int], Tensor | None]:
        """Tokens of the output at ``in_index``.

        It is a map (B, C, h, w), or a list of a map, prefix tokens (B, P, C) and, where the blocks need it, the rotary
        position embedding (2, h · w, d).
        """
        feature, prefix, rope = self._split(feats[self.in_index])
        grid = (feature.shape[-2], feature.shape[-1])
        x = feature.flatten(2).transpose(1, 2)  # (B, C, h, w) to patch tokens (B, h·w, C)
        return [x] if prefix is None else [prefix, x], grid, rope

    def _split(self, output: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Map, prefix tokens and rotary position embedding of a backbone's output."""
        parts: list[Any] = [output] if isinstance(output, Tensor) else list(output)
        feature, prefix, rope = (parts + [None] * 3)[:3]  # a subclass may take more
        if feature.shape[1] != self.in_channels:
            raise ValueError(
                f"The backbone's output {self.in_index} has {feature.shape[1]} channels, but EoMTHead expects "
                f'{self.in_channels}: give it the same arch, or in_channels={feature.shape[1]}.'
            )
        theta = self.arch.rope_theta
        if rope is not None and theta is None:
            raise ValueError('The backbone has rotary positions and the arch of EoMTHead has none: give both the same arch.')
        if rope is None and theta is not None:  # a backbone of another kind
            rescale = self.arch.rope_rescale if self.training else None
            grid = (feature.shape[-2], feature.shape[-1])
            rope = rotary_embedding(grid, self.arch.head_dims, theta, rescale, feature.device)
        if prefix is None:
            return self.input_projection(feature), None, rope
        prefix = prefix[:, None] if prefix.ndim == 2 else prefix
        if self.in_channels != self.arch.embed_dims:
            prefix = self.input_projection(prefix.transpose(1, 2)[..., None]).flatten(2).transpose(1, 2)
        return self.input_projection(feature), prefix, rope
