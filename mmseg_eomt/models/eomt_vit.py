"""The backbone: a plain ViT up to its joint blocks."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.layers import PatchEmbed, init_vit_linears
from mmseg_eomt.weights.loading import load_vit_weights, pretrained_checkpoint
from mmseg_eomt.weights.resize import resize_pos_embed


@MODELS.register_module()
class EoMTViT(BaseModule):
    """Plain ViT (DINOv2) whose last blocks are left to :class:`EoMTHead`.

    Patches, positions and prefix tokens (class token, registers), then blocks ``0 .. num_layers - num_joint_blocks``. With
    ``num_joint_blocks=0`` it is a whole ViT, final norm included, under any head of the toolbox.

    Args:
        arch: ``'small'``, ``'base'``, ``'large'``, ``'giant'`` or a dict of sizes (:class:`.arch.ViTArch`).
        img_size: Side of the training images in pixels, or (height, width). It sets the grid of the position embedding;
            any other size is interpolated to at run time. Default: 640.
        patch_size: Side of a patch in pixels. Default: 16.
        num_register_tokens: Register tokens after the class token; 0 for a ViT without. Default: 4.
        num_joint_blocks: Last blocks that run in the head, together with the queries. Default: 4.
        out_indices: Blocks whose tokens are returned as maps, negative ones counted from the backbone's last.
            Default: (-1,).
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` reads a DINOv2 release file (path or URL) and fits names, patch
            size and grid. None starts from random weights. Default: None.

    Returns of ``forward``:
        A tuple, one map (B, embed_dims, h, w) for each of ``out_indices``, with h and w rounded up where the image is not a
        multiple of the patch size (it is padded right and below). If there are joint blocks and the backbone's last block
        is among ``out_indices``, its entry is a list ``[map, prefix tokens (B, P, embed_dims)]``, as mmseg's own ViT gives
        with ``output_cls_token``.

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
        self.out_indices = tuple(sorted(i % num_blocks for i in out_indices))

        dims = self.arch.embed_dims
        self.patch_embed = PatchEmbed(dims, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.reg_token = nn.Parameter(torch.zeros(1, num_register_tokens, dims)) if num_register_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dims))
        self.blocks = nn.ModuleList(self.arch.build_block() for _ in range(num_blocks))
        self.norm = nn.Identity() if num_joint_blocks else nn.LayerNorm(dims, eps=1e-6)
        init_vit_linears(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s weights, if it names any, fitted to this model."""
        checkpoint = pretrained_checkpoint(self.init_cfg)
        if checkpoint:
            load_vit_weights(self, checkpoint, self.arch, first_block=0)
            self._is_init = True
        else:
            super().init_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        # a checkpoint of another img_size: mmengine would leave its position embedding out and go on
        pos_embed = state_dict.get(f'{prefix}pos_embed')
        if pos_embed is not None and pos_embed.shape[1] != self.pos_embed.shape[1]:
            side = round(pos_embed.shape[1] ** 0.5)
            if side * side != pos_embed.shape[1]:
                raise RuntimeError(
                    f'The checkpoint has a position embedding for {pos_embed.shape[1]} patches, no square, and img_size '
                    f'gives {self.grid_size}: set img_size to what it was in training; other image sizes work at run time.'
                )
            state_dict[f'{prefix}pos_embed'] = resize_pos_embed(pos_embed, (side, side), self.grid_size)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, image: Tensor) -> tuple[Tensor | list[Tensor], ...]:
        """Image (B, 3, H, W), normalised, to the maps that the class docstring describes."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        grid = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)

        x = self.patch_embed(image)
        x = x + resize_pos_embed(self.pos_embed, self.grid_size, grid)
        prefix = self.cls_token if self.reg_token is None else torch.cat((self.cls_token, self.reg_token), dim=1)
        num_prefix = prefix.shape[1]
        x = torch.cat((prefix.expand(x.shape[0], -1, -1), x), dim=1)

        last = len(self.blocks) - 1
        outs: list[Tensor | list[Tensor]] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i not in self.out_indices:
                continue
            tokens = self.norm(x) if i == last else x
            feature = tokens[:, num_prefix:].transpose(1, 2).unflatten(2, grid)
            outs.append([feature, tokens[:, :num_prefix]] if i == last and self.num_joint_blocks else feature)
        return tuple(outs)
