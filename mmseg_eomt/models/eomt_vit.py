"""The backbone: a plain ViT up to its joint blocks."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.layers import PatchEmbed, for_all_tokens, init_vit_linears, recomputed, rotary_embedding
from mmseg_eomt.models.resize import grid_of, resize_pos_embed


class Tokens(NamedTuple):
    """What runs through the blocks.

    Args:
        x: Prefix tokens and patches, (B, P + h·w, embed_dims).
        grid: Rows h and columns w of patches.
        rope: Rotary position embedding of the patches, (2, h·w, d); None for learned positions.
    """

    x: Tensor
    grid: tuple[int, int]
    rope: Tensor | None


@MODELS.register_module()
class EoMTViT(BaseModule):
    """Plain ViT (DINOv2, DINOv3 and their like) whose last blocks are left to :class:`EoMTHead`.

    Patches, positions and prefix tokens (class token, registers), then blocks ``0 .. num_layers - num_joint_blocks``. With
    ``num_joint_blocks=0`` it is a whole ViT, final norm included, under any head of the toolbox.

    Args:
        arch: ``'small'``, ``'base'``, ``'large'``, ``'giant'`` (DINOv2), ``'dinov3_large'`` and the like, or a dict: see
            :func:`.arch.get_arch`.
        img_size: Side of the training images in pixels, or (height, width). It sets the grid of a learned position
            embedding; any other size is interpolated to at run time. Default: 640.
        patch_size: Side of a patch in pixels. Default: 16.
        num_register_tokens: Register tokens after the class token; 0 for a ViT without. Default: 4.
        num_joint_blocks: Last blocks that run in the head, together with the queries. Default: 4.
        out_indices: Blocks whose tokens are returned as maps, negative ones counted from the backbone's last.
            Default: (-1,).
        with_cp: Whether the blocks use activation checkpointing in training. Default: False.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` reads a public ViT or EoMT (path, URL or ``hf://owner/repo``,
            any of the formats of :mod:`mmseg_eomt.weights`) and fits names, patch size and grid. None starts from random
            weights. Default: None.

    Returns of ``forward``:
        A tuple, one map (B, embed_dims, h, w) for each of ``out_indices``, with h and w rounded up where the image is not a
        multiple of the patch size (it is padded right and below). If there are joint blocks and the backbone's last block
        is among ``out_indices``, its entry is a list ``[map, prefix tokens (B, P, embed_dims)]``, as mmseg's own ViT gives
        with ``output_cls_token``; with rotary positions their cosines and sines (2, h · w, d) follow, which the joint blocks
        share: in training they are rescaled at random.

    Raises:
        ValueError: If a size, an index or the weights do not fit; the message says what was given and expected.

    Source: EoMT (Kerssies et al., CVPR 2025), section 3; public implementation ``models/eomt.py``.
    """

    def __init__(
        self,
        arch: str | dict = 'large',
        img_size: int | tuple[int, int] = 640,
        patch_size: int = 16,
        num_register_tokens: int = 4,
        num_joint_blocks: int = 4,
        out_indices: tuple[int, ...] = (-1,),
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = get_arch(arch)
        if not 0 <= num_joint_blocks < self.arch.num_layers:
            raise ValueError(
                f'num_joint_blocks must be from 0 to {self.arch.num_layers - 1} for {self.arch.num_layers} blocks, '
                f'got {num_joint_blocks}.'
            )
        num_blocks = self.arch.num_layers - num_joint_blocks
        if not all(-num_blocks <= i < num_blocks for i in out_indices):
            raise ValueError(f'out_indices must be from {-num_blocks} to {num_blocks - 1}, got {tuple(out_indices)}.')
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.patch_size = patch_size
        self.grid_size = (-(-height // patch_size), -(-width // patch_size))
        self.num_joint_blocks = num_joint_blocks
        self.with_cp = with_cp
        self.out_indices = tuple(sorted(i % num_blocks for i in out_indices))

        dims, norm_eps = self.arch.embed_dims, self.arch.norm_eps
        learned = self.arch.rope_theta is None
        self.patch_embed = PatchEmbed(dims, patch_size, bias=not self.arch.pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims)) if self.arch.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_register_tokens, dims)) if num_register_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dims)) if learned else None
        if learned:
            self.register_buffer('pos_grid', torch.tensor(self.grid_size))  # what a checkpoint's positions are for
        self.norm_pre = nn.LayerNorm(dims, eps=norm_eps) if self.arch.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(self.arch.build_block() for _ in range(num_blocks))
        self.norm = nn.Identity() if num_joint_blocks else nn.LayerNorm(dims, eps=norm_eps)
        init_vit_linears(self)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    @property
    def first_block(self) -> int:
        """The number of ``blocks.0`` in the whole ViT: this part holds its first blocks."""
        return 0

    @property
    def outputs_with_tokens(self) -> tuple[int, ...]:
        """Which of the outputs are lists with prefix tokens beside the map, for a head that takes these."""
        last = len(self.blocks) - 1
        return (len(self.out_indices) - 1,) if self.num_joint_blocks and last in self.out_indices else ()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # a checkpoint of another img_size: mmengine would leave its position embedding out and go on
        pos_embed, noted = (state_dict.get(f'{prefix}{name}') for name in ('pos_embed', 'pos_grid'))
        if self.pos_embed is not None and pos_embed is not None:
            grid = grid_of(pos_embed, noted, self.grid_size)
            state_dict[f'{prefix}pos_embed'] = resize_pos_embed(pos_embed, grid, self.grid_size)
            state_dict[f'{prefix}pos_grid'] = self.pos_grid
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, image: Tensor) -> tuple[Tensor | list[Tensor], ...]:
        """Image (B, 3, H, W), normalised, to the maps that the class docstring describes."""
        _, outs = self.run_blocks(self.embed(image), 0, len(self.blocks))
        return tuple(outs)

    def embed(self, image: Tensor) -> Tokens:
        """Image (B, 3, H, W), normalised, to the tokens that enter the first block."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        grid = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)

        x = self.patch_embed(image)
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, self.grid_size, grid)
        rope = self._rotary_embedding(grid, x.device)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        x = self.norm_pre(torch.cat((*prefix, x), dim=1))  # (B, P + h·w, C)
        return Tokens(x, grid, rope)

    def run_blocks(self, tokens: Tokens, start: int, stop: int) -> tuple[Tokens, list[Tensor | list[Tensor]]]:
        """Run blocks ``start .. stop - 1``.

        Args:
            tokens: What enters block ``start``.
            start: First block.
            stop: The block after the last.

        Returns:
            The tokens after them, and the outputs, as the class docstring describes, of those that ``out_indices`` names.
        """
        x, grid, rope = tokens
        block_rope = None if rope is None else for_all_tokens(rope, x.shape[1])
        outs = []
        for i in range(start, stop):
            x = self.run_block(i, x, block_rope)
            if i in self.out_indices:
                outs.append(self.output(i, Tokens(x, grid, rope)))
        return Tokens(x, grid, rope), outs

    def run_block(self, index: int, x: Tensor, rope: Tensor | None) -> Tensor:
        """Tokens (B, P + h·w, C) through one block; ``rope`` (2, P + h·w, d) is for all tokens."""
        return recomputed(self.with_cp, self.blocks[index], x, None, rope)

    def output(self, index: int, tokens: Tokens) -> Tensor | list[Tensor]:
        """What is returned of the tokens after a block."""
        last = index == len(self.blocks) - 1
        x = self.norm(tokens.x) if last else tokens.x
        num_prefix = x.shape[1] - tokens.grid[0] * tokens.grid[1]
        feature = x[:, num_prefix:].transpose(1, 2).unflatten(2, tokens.grid)  # (B, C, h, w), as the toolbox's heads take it
        if last and self.num_joint_blocks:
            return [feature, x[:, :num_prefix], *([] if tokens.rope is None else [tokens.rope])]
        return feature

    def _rotary_embedding(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        if self.arch.rope_theta is None:
            return None
        return rotary_embedding(grid, self.arch.head_dims, self.arch.rope_theta, self._rope_rescale(), device)

    def _rope_rescale(self) -> float | None:
        return self.arch.rope_rescale if self.training else None
