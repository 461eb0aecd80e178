"""Sizes of the plain ViTs that EoMT is built from."""

from dataclasses import dataclass, fields

from mmseg_eomt.models.layers import Block


@dataclass(frozen=True)
class ViTArch:
    """Size of a plain ViT.

    Args:
        embed_dims: Width of a token.
        num_layers: Blocks in all, joint ones included.
        num_heads: Attention heads a block.
        mlp: ``'gelu'`` or ``'swiglu'`` (gated, DINOv2's ViT-g).
        mlp_hidden_dims: Hidden width of the MLP. Default: 4 × ``embed_dims``.
        layer_scale_init: First value of LayerScale where no weights are loaded. 1e-5 suits pretrained weights; a small
            model trained from scratch learns faster from 1. Default: 1e-5.
    """

    embed_dims: int
    num_layers: int
    num_heads: int
    mlp: str = 'gelu'
    mlp_hidden_dims: int = 0
    layer_scale_init: float = 1e-5

    def __post_init__(self) -> None:
        if self.mlp not in ('gelu', 'swiglu'):
            raise ValueError(f"arch mlp must be 'gelu' or 'swiglu', got {self.mlp!r}.")
        if not self.mlp_hidden_dims:
            object.__setattr__(self, 'mlp_hidden_dims', 4 * self.embed_dims)

    def build_block(self) -> Block:
        """A new transformer block of this size."""
        return Block(self.embed_dims, self.num_heads, self.mlp, self.mlp_hidden_dims, self.layer_scale_init)


ARCHS = {
    'small': ViTArch(384, 12, 6),
    'base': ViTArch(768, 12, 12),
    'large': ViTArch(1024, 24, 16),
    'giant': ViTArch(1536, 40, 24, mlp='swiglu', mlp_hidden_dims=4096),
}


def get_arch(arch: str | dict) -> ViTArch:
    """Look up or build a :class:`ViTArch`.

    Args:
        arch: ``'small'``, ``'base'``, ``'large'``, ``'giant'``, or a dict with the fields of :class:`ViTArch`.

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
