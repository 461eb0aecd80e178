"""Sizes of the plain ViTs that EoMT is built from."""

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from mmseg_eomt.models.layers import MLPS, Block


@dataclass(frozen=True)
class ViTArch:
    """Size and kind of a plain ViT.

    Args:
        embed_dims: Width of a token.
        num_layers: Blocks in all, joint ones included.
        num_heads: Attention heads per block.
        mlp: ``'gelu'``, ``'gelu_tanh'`` (SigLIP), ``'quick_gelu'`` (OpenAI's CLIP) or ``'swiglu'`` (gated, DINOv2's ViT-g
            and DINOv3's S+, H+ and 7B). Default: ``'gelu'``.
        mlp_hidden_dims: Hidden width of the MLP. Default: 4 × ``embed_dims``.
        layer_scale_init: First value of LayerScale where no weights are loaded; None for a ViT without. 1e-5 suits
            pretrained weights; a small model trained from scratch learns faster from 1. Default: 1e-5.
        norm_eps: Epsilon of the blocks' norms and the final one. Default: 1e-6.
        qkv_bias: Which of queries, keys and values have a bias: ``'qkv'``, ``'qv'`` (DINOv3) or ``''``. Default: ``'qkv'``.
        rope_theta: Base of the rotary position embedding's periods; None for a learned position embedding. Default: None.
        rope_rescale: Largest factor by which rotary positions are rescaled at random in training; None for never.
            Default: None.
        class_token: Whether there is a class token. Default: True.
        pre_norm: Whether a norm comes before the first block, and patches have no bias (CLIP). Default: False.

    Raises:
        ValueError: If a value is not one of these.
    """

    embed_dims: int
    num_layers: int
    num_heads: int
    mlp: str = 'gelu'
    mlp_hidden_dims: int = 0
    layer_scale_init: float | None = 1e-5
    norm_eps: float = 1e-6
    qkv_bias: str = 'qkv'
    rope_theta: float | None = None
    rope_rescale: float | None = None
    class_token: bool = True
    pre_norm: bool = False

    def __post_init__(self) -> None:
        if self.mlp not in MLPS:
            raise ValueError(f'arch mlp must be one of {sorted(MLPS)}, got {self.mlp!r}.')
        if self.qkv_bias not in ('qkv', 'qv', ''):
            raise ValueError(f"arch qkv_bias must be 'qkv', 'qv' or '', got {self.qkv_bias!r}.")
        if self.embed_dims % self.num_heads:
            raise ValueError(
                f'num_heads must divide embed_dims, got embed_dims={self.embed_dims} and num_heads={self.num_heads}.'
            )
        if self.rope_theta is not None and self.head_dims % 4:
            raise ValueError(f'Rotary positions need a head width divisible by 4, got {self.head_dims}.')
        if not self.mlp_hidden_dims:
            object.__setattr__(self, 'mlp_hidden_dims', 4 * self.embed_dims)

    @property
    def head_dims(self) -> int:
        """Width of an attention head."""
        return self.embed_dims // self.num_heads

    def build_block(self) -> Block:
        """A new transformer block."""
        return Block(
            self.embed_dims,
            self.num_heads,
            self.mlp,
            self.mlp_hidden_dims,
            self.layer_scale_init,
            self.norm_eps,
            self.qkv_bias,
        )


_DINOV3: dict[str, Any] = dict(norm_eps=1e-5, qkv_bias='qv', rope_theta=100.0, rope_rescale=2.0)
_PLAIN: dict[str, Any] = dict(layer_scale_init=None)
ARCHS = {
    'small': ViTArch(384, 12, 6),
    'base': ViTArch(768, 12, 12),
    'large': ViTArch(1024, 24, 16),
    'giant': ViTArch(1536, 40, 24, mlp='swiglu', mlp_hidden_dims=4096),
    'dinov3_small': ViTArch(384, 12, 6, **_DINOV3),
    'dinov3_small_plus': ViTArch(384, 12, 6, mlp='swiglu', mlp_hidden_dims=1536, **_DINOV3),
    'dinov3_base': ViTArch(768, 12, 12, **_DINOV3),
    'dinov3_large': ViTArch(1024, 24, 16, **_DINOV3),
    'dinov3_huge_plus': ViTArch(1280, 32, 20, mlp='swiglu', mlp_hidden_dims=5120, **_DINOV3),
    'dinov3_7b': ViTArch(4096, 40, 32, mlp='swiglu', mlp_hidden_dims=8192, **{**_DINOV3, 'qkv_bias': ''}),
    'vit_small': ViTArch(384, 12, 6, **_PLAIN),
    'vit_base': ViTArch(768, 12, 12, **_PLAIN),
    'vit_large': ViTArch(1024, 24, 16, **_PLAIN),
}


def get_arch(arch: str | dict) -> ViTArch:
    """Look up or build a :class:`ViTArch`.

    Args:
        arch: ``'small'``, ``'base'``, ``'large'``, ``'giant'`` (DINOv2; DeiT-III without registers), ``'dinov3_small'``,
            ``'dinov3_small_plus'``, ``'dinov3_base'``, ``'dinov3_large'``, ``'dinov3_huge_plus'``, ``'dinov3_7b'``,
            ``'vit_small'``, ``'vit_base'``, ``'vit_large'`` (no LayerScale: augreg, MAE), or a dict with the fields of
            :class:`ViTArch`.

    Raises:
        ValueError: If the name or a key of the dict is unknown, or a size is missing.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch must be one of {sorted(ARCHS)} or a dict of sizes, got {arch!r}.')
        return ARCHS[arch]
    names = {field.name for field in fields(ViTArch)}
    required = {'embed_dims', 'num_layers', 'num_heads'}
    if not required <= set(arch) <= names:
        raise ValueError(f'arch as a dict needs {sorted(required)} and takes {sorted(names)}, got {sorted(arch)}.')
    return ViTArch(**arch)


def arch_of(model: nn.Module) -> ViTArch | None:
    """The arch of a segmentor's ViT, of its backbone or its head; None if it has none."""
    archs = (getattr(module, 'arch', None) for module in model.modules())
    return next((arch for arch in archs if isinstance(arch, ViTArch)), None)
