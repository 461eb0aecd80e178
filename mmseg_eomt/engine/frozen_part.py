"""The frozen first part of a ViT: what it computes, and what the rest makes of it."""

import re
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmseg_eomt.adapters.base_weights import fingerprint
from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens
from mmseg_eomt.models.layers import rotary_embedding

ROPE = 'rope'  # in a layout: the rotary embedding, which is the same for every image


class Features(NamedTuple):
    """What the frozen part gives for a batch.

    Args:
        tensors: The tokens (B, P + h·w, C) after its last block, then what it has returned of earlier blocks (B, …).
        layout: The outputs of those earlier blocks, with each tensor's place in ``tensors``.
        grid: Rows h and columns w of patches.
    """

    tensors: list[Tensor]
    layout: list[Any]
    grid: tuple[int, int]


class FrozenPart:
    """The blocks of a backbone before the first one that is trained or adapted.

    They compute as in evaluation: rotary positions are not rescaled at random, here and in the blocks that follow.

    Args:
        backbone: An :class:`EoMTViT`.

    Raises:
        ValueError: If it is another backbone, or begins with a part that is trained.
    """

    def __init__(self, backbone: nn.Module) -> None:
        if not isinstance(backbone, EoMTViT):
            raise ValueError(f'Features are cached of an EoMTViT, and the backbone is a {type(backbone).__name__}.')
        self.vit = backbone
        self.num_blocks = len(backbone.blocks)
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                block = re.match(r'blocks\.(\d+)\.', name)
                self.num_blocks = min(self.num_blocks, int(block[1]) if block else 0)
                if not self.num_blocks:
                    raise ValueError(
                        f'Features are cached of the frozen blocks that the backbone begins with, and backbone.{name} is '
                        f'trained: freeze the backbone, as configs/_base_/frozen.py does, or adapt later blocks alone.'
                    )

    def describe(self) -> dict[str, Any]:
        """What the features depend on, in plain values; each weight by shape and digest."""
        own = {
            name: ':'.join(fingerprint(value).split(':')[:2])
            for name, value in self.vit.named_parameters()
            if not (block := re.match(r'blocks\.(\d+)\.', name)) or int(block[1]) < self.num_blocks
        }
        names = ('patch_size', 'grid_size', 'out_indices', 'num_joint_blocks')
        settings = {name: getattr(self.vit, name) for name in names}
        return dict(
            weights=own,
            backbone=dict(
                settings, type=type(self.vit).__name__, num_cached_blocks=self.num_blocks, arch=asdict(self.vit.arch)
            ),
        )

    @torch.no_grad()
    def encode(self, image: Tensor) -> Features:
        """Images (B, 3, H, W), normalised, to what the frozen part gives."""
        training = self.vit.training
        self.vit.eval()
        try:
            tokens, outs = self.vit.run_blocks(self.vit.embed(image), 0, self.num_blocks)
        finally:
            self.vit.train(training)
        if self._ends_with_output(self.vit):
            outs = outs[:-1]  # made of the tokens again
        tensors = [tokens.x]
        layout = [_put(out, tokens.rope, tensors) for out in outs]
        return Features(tensors, layout, tokens.grid)

    def finish(self, vit: EoMTViT, features: Features) -> tuple[Any, ...]:
        """What ``vit``, the backbone or a copy of it, returns for the images of which these are the features."""
        x, grid = features.tensors[0], features.grid
        theta = vit.arch.rope_theta
        rope = None if theta is None else rotary_embedding(grid, vit.arch.head_dims, theta, None, x.device)
        tokens = Tokens(x, grid, rope)
        outs = [_take(out, rope, features.tensors) for out in features.layout]
        if self._ends_with_output(vit):
            outs.append(vit.output(self.num_blocks - 1, tokens))
        _, later = vit.run_blocks(tokens, self.num_blocks, len(vit.blocks))
        return (*outs, *later)

    def _ends_with_output(self, vit: EoMTViT) -> bool:
        return self.num_blocks - 1 in vit.out_indices


def _put(out: Any, rope: Tensor | None, tensors: list[Tensor]) -> Any:
    """Append the tensors of an output; its layout."""
    if isinstance(out, (list, tuple)):
        return [_put(part, rope, tensors) for part in out]
    if out is rope:
        return ROPE
    tensors.append(out)
    return len(tensors) - 1


def _take(layout: Any, rope: Tensor | None, tensors: list[Tensor]) -> Any:
    """An output of its layout."""
    if isinstance(layout, list):
        return [_take(part, rope, tensors) for part in layout]
    return rope if layout == ROPE else tensors[layout]
