"""A whole ViT whose outputs are for PMTHead."""

from mmseg.registry import MODELS
from torch import Tensor

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.eomt_vit import EoMTViT, Tokens


@MODELS.register_module()
class LateralViT(EoMTViT):
    """A whole ViT that gives normed maps with prefix tokens after several blocks, as :class:`.PMTHead` takes them.

    It is made to be frozen: ``LoRAHook(target_modules=[], trainable_modules=['decode_head'])``. Rotary positions are not
    rescaled at random in training, since published models are trained on an encoder in evaluation mode.

    Args:
        arch: As of :class:`EoMTViT`.
        img_size: As of :class:`EoMTViT`.
        patch_size: As of :class:`EoMTViT`.
        num_register_tokens: As of :class:`EoMTViT`.
        out_indices: Blocks whose tokens are returned, negative ones counted from the last. Default: the last of each
            quarter of the blocks, (5, 11, 17, 23) for 24.
        with_cp: As of :class:`EoMTViT`; of use only where blocks are trained.
        init_cfg: As of :class:`EoMTViT`.

    Returns of ``forward``:
        A tuple, for each of ``out_indices`` a list ``[map (B, embed_dims, h, w), prefix tokens (B, P, embed_dims)]``, both
        after the final norm; with rotary positions their cosines and sines (2, h · w, d) follow.

    Source: PMT (Cavagnero et al., CVPR 2026 Workshops); public implementation ``image/models/pmt.py``.
    """

    def __init__(
        self,
        arch: str | dict = 'large',
        img_size: int | tuple[int, int] = 640,
        patch_size: int = 16,
        num_register_tokens: int = 4,
        out_indices: tuple[int, ...] | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        if out_indices is None:
            out_indices = tuple(get_arch(arch).num_layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        super().__init__(arch, img_size, patch_size, num_register_tokens, 0, out_indices, with_cp, init_cfg)

    @property
    def outputs_with_tokens(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self.out_indices)))

    def output(self, index: int, tokens: Tokens) -> list[Tensor]:
        """Map, prefix tokens and rotary positions after a block."""
        x = self.norm(tokens.x)
        num_prefix = x.shape[1] - tokens.grid[0] * tokens.grid[1]
        feature = x[:, num_prefix:].transpose(1, 2).unflatten(2, tokens.grid)  # (B, C, h, w)
        return [feature, x[:, :num_prefix], *([] if tokens.rope is None else [tokens.rope])]

    def _rope_rescale(self) -> float | None:
        return None
