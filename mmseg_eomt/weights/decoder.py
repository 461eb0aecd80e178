"""The decoder of a PMT among a checkpoint's weights: recognised, complete, put on its ViT."""

import torch

from mmseg_eomt.weights.checkpoint_io import check_kind
from mmseg_eomt.weights.key_mapping import StateDict
from mmseg_eomt.weights.pmt_formats import DECODER, PMT, PMT_DINOV3

OWN_PMT = 'segmentor of mmseg-eomt with PMTHead'
OWN_MARK = 'decode_head.laterals.0.mlp.fc1.weight'
_VIT = ('patch_embed.', 'blocks.', 'norm.', 'norm_pre.')
_HEADS = ('query_embed.weight', 'norm.weight', 'norm.bias', *(f'mask_head.{i}.weight' for i in (0, 2, 4)))
_BLOCK = ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
_LATERAL = ('norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var', 'mlp.fc1.weight', 'mlp.fc2.weight')


def from_own(state_dict: StateDict) -> StateDict:
    """A segmentor's :class:`.LateralViT`, where it is there, as a ViT, and its :class:`.PMTHead` behind :data:`DECODER`."""
    names = {'backbone.': '', 'decode_head.': DECODER}
    return {
        f'{ours}{name.removeprefix(theirs)}': value
        for theirs, ours in names.items()
        for name, value in state_dict.items()
        if name.startswith(theirs)
    }


def to_own(weights: StateDict) -> StateDict:
    """The reverse of :func:`from_own`."""
    return {
        f'decode_head.{name.removeprefix(DECODER)}' if name.startswith(DECODER) else f'backbone.{name}': value
        for name, value in weights.items()
    }


def decoder_of(weights: StateDict) -> StateDict:
    """The entries of the decoder as :class:`.PMTHead` calls them; empty where there is none."""
    return {name.removeprefix(DECODER): value for name, value in weights.items() if name.startswith(DECODER)}


def has_vit(weights: StateDict) -> bool:
    """Whether there is a ViT, or part of one."""
    return any(name.startswith(_VIT) for name in weights)


def check_decoder(decoder: StateDict, source: str) -> None:
    """Make sure that no weight of a decoder is missing that others imply, and that all are numbers.

    Raises:
        ValueError: If one is not, with its name.
    """
    needed = list(_HEADS)
    for part, least in (('blocks', [f'{layer}.weight' for layer in _BLOCK]), ('laterals', list(_LATERAL))):
        found: dict[int, set[str]] = {}
        for name in decoder:
            if name.startswith(f'{part}.'):
                _, number, rest = name.split('.', 2)
                found.setdefault(int(number), set()).add(rest)
        names = sorted(set().union(*found.values(), least))
        needed += [f'{part}.{i}.{name}' for i in range(max(found, default=0) + 1) for name in names]
    absent = [name for name in needed if name not in decoder]
    if absent:
        raise ValueError(f'{source}: the decoder of a PMT lacks {len(absent)} weights: {", ".join(absent)}.')
    for name, value in decoder.items():
        if not name.endswith('num_batches_tracked'):
            check_kind(f'{DECODER}{name}', value, torch.float32, source)


def with_vit(decoder: StateDict, vit: StateDict) -> StateDict:
    """The authors' state dict of a decoder, under our names, and of the ViT that it is for.

    A class token's position is added to the token, as timm does: the authors' layout keeps none beside registers.
    """
    vit = dict(vit)
    place = vit.pop('cls_pos_embed', None)
    if place is not None and 'cls_token' in vit:
        vit['cls_token'] = vit['cls_token'] + place
    return (PMT if 'pos_embed' in vit else PMT_DINOV3).write({**vit, **decoder})
