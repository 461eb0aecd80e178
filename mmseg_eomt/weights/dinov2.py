"""The layout of the DINOv2 release files."""

import re

from torch import Tensor

NOT_USED = {'mask_token'}
RENAMES = (
    (r'^register_tokens$', 'reg_token'),
    (r'\.mlp\.w12\.', '.mlp.fc1.'),
    (r'\.mlp\.w3\.', '.mlp.fc2.'),
)


def is_dinov2(state_dict: object) -> bool:
    """Whether a loaded file has the entries of a DINOv2 release file."""
    needed = {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'norm.weight'}
    return isinstance(state_dict, dict) and needed <= set(state_dict)


def from_dinov2(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a DINOv2 release state dict into a ViT's under timm's names.

    The position embedding of the class token is added to the token, as timm does.

    Args:
        state_dict: The content of a ``dinov2_vit*14*_pretrain.pth``.

    Returns:
        A state dict of the whole ViT: ``cls_token``, ``reg_token`` where there are registers, ``pos_embed`` (1, h · w, C)
        without prefix tokens, ``patch_embed.proj.…``, ``blocks.N.…``, ``norm.…``.
    """
    out = {}
    for name, value in state_dict.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name not in NOT_USED:
            out[name] = value
    out['cls_token'] = out['cls_token'] + out['pos_embed'][:, :1]
    out['pos_embed'] = out['pos_embed'][:, 1:]
    return out


def sizes(state_dict: dict[str, Tensor]) -> dict[str, int | str]:
    """What a DINOv2 release state dict says of its ViT, under the names of the config.

    The number of heads cannot be read from weights.
    """
    gated = 'blocks.0.mlp.w3.weight' in state_dict
    return dict(
        embed_dims=state_dict['cls_token'].shape[-1],
        num_layers=1 + max(int(name.split('.')[1]) for name in state_dict if name.startswith('blocks.')),
        mlp='swiglu' if gated else 'gelu',
        mlp_hidden_dims=state_dict[f'blocks.0.mlp.{"w3" if gated else "fc2"}.weight'].shape[1],
    )
