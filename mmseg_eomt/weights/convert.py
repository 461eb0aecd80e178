"""Writing a whole EoMT in other formats: the toolbox's, the authors', Hugging Face's."""

from collections.abc import Sequence
from typing import Any

import torch

from mmseg_eomt.models.arch import ARCHS, ViTArch
from mmseg_eomt.models.resize import grid_of
from mmseg_eomt.weights.arch import arch_field, check_arch, infer_arch
from mmseg_eomt.weights.checkpoint import ViTWeights, to_segmentor
from mmseg_eomt.weights.checkpoint_io import naming
from mmseg_eomt.weights.decoder import decoder_of, has_vit, to_own, with_vit
from mmseg_eomt.weights.fit import fold_class_position
from mmseg_eomt.weights.formats import EOMT, EOMT_DINOV3, HF_EOMT, HF_EOMT_DINOV3
from mmseg_eomt.weights.key_mapping import GRID, UNUSED, StateDict
from mmseg_eomt.weights.pmt_formats import DECODER, PMT_DECODER

NO_OBJECT_WEIGHT = 0.1  # of "no object" in the authors' class loss, which their checkpoints hold
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def to_mmseg(found: ViTWeights, meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for :class:`EoMTViT` and :class:`EoMTHead`, or for :class:`.LateralViT` and :class:`.PMTHead`.

    Args:
        found: A whole EoMT, or a PMT with or without its ViT.
        meta: What is known beside the weights, such as ``dataset_meta``.

    Returns:
        ``meta`` and ``state_dict``.

    Raises:
        ValueError: If it is a ViT alone.
    """
    is_pmt = bool(decoder_of(found.weights))
    weights = _pmt_weights_of(found) if is_pmt else _weights_of(found)
    fold_class_position(weights)
    grid = _grid(weights)
    if grid is not None:
        weights[GRID] = torch.tensor(grid)
    state_dict = to_own(weights) if is_pmt else to_segmentor(weights, len(weights['attn_mask_probs']))
    return dict(meta=meta, state_dict=state_dict)


def to_eomt(found: ViTWeights) -> StateDict:
    """A state dict for the public implementation, with what its ``LightningModule`` holds beside the network.

    Raises:
        ValueError: If it is a ViT alone, or has weights that the implementation has no place for.
    """
    weights = _weights_of(found)
    if 'pos_embed' in weights and 'reg_token' not in weights and 'cls_token' in weights:  # timm then has a place for it
        grid = _grid(weights)
        if grid is None or grid[0] != grid[1]:
            raise ValueError(
                f'{found.source} has no registers and is not for square images: which of its positions is the class '
                f"token's could not be inferred in the public format."
            )
        weights.setdefault('cls_pos_embed', torch.zeros_like(weights['cls_token']))
    out = (EOMT if 'pos_embed' in weights else EOMT_DINOV3).write(weights)
    for name, values in IMAGENET.items():
        out[f'network.encoder.pixel_{name}'] = torch.tensor(values).view(1, 3, 1, 1)
    out['criterion.empty_weight'] = _class_weights(weights)
    return out


def to_pmt(found: ViTWeights) -> StateDict:
    """A state dict for the public implementation of PMT, with the ViT where it is there.

    Raises:
        ValueError: If it is no PMT, or has weights that the implementation has no place for.
    """
    weights = _pmt_weights_of(found)
    if not has_vit(weights):
        return PMT_DECODER.write(weights)
    vit = {name: value for name, value in weights.items() if not name.startswith(DECODER)}
    out = with_vit({name: value for name, value in weights.items() if name.startswith(DECODER)}, vit)
    for name, values in IMAGENET.items():
        out[f'network.encoder.pixel_{name}'] = torch.tensor(values).view(1, 3, 1, 1)
    return out


def to_hugging_face(
    found: ViTWeights, arch: ViTArch | None = None, img_size: int | None = None, classes: Sequence[str] | None = None
) -> tuple[dict[str, Any], StateDict]:
    """Config and state dict for ``EomtForUniversalSegmentation`` or ``EomtDinov3ForUniversalSegmentation``.

    Its mask probabilities are zero: evaluation there masks where they are not, and here never.

    Args:
        found: A whole EoMT.
        arch: Of its ViT. Default: that of :data:`~mmseg_eomt.models.arch.ARCHS` which its weights are of.
        img_size: Side of the images in pixels, for rotary positions; learned ones say it. Default: 640.
        classes: Names of the classes.

    Raises:
        ValueError: If their model cannot express it, or the arch is not known, with the reason.
    """
    weights = _weights_of(found)
    fold_class_position(weights)
    arch = arch or known_arch(found)
    check_arch(found, arch, {})
    if arch.mlp in ('gelu_tanh', 'quick_gelu') or not arch.class_token or arch.pre_norm:
        raise ValueError(
            f'{found.source} has mlp={arch.mlp!r}, class_token={arch.class_token} and pre_norm={arch.pre_norm}; the EoMT of '
            f'Hugging Face has GELU, a class token and no norm before the blocks: it cannot be expressed there.'
        )
    patch_size, num_classes = weights['patch_embed.proj.weight'].shape[-1], len(weights['class_head.weight']) - 1
    labels = list(classes or (f'LABEL_{i}' for i in range(num_classes)))
    config = dict(
        hidden_size=arch.embed_dims,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        layer_norm_eps=arch.norm_eps,
        patch_size=patch_size,
        num_blocks=len(weights['attn_mask_probs']),
        num_queries=len(weights['query_embed.weight']),
        num_upscale_blocks=len({name.split('.')[1] for name in weights if name.startswith('upscale.')}),
        num_register_tokens=weights['reg_token'].shape[1] if 'reg_token' in weights else 0,
        id2label={str(i): name for i, name in enumerate(labels)},
        label2id={name: i for i, name in enumerate(labels)},
        dtype='float32',
    )
    empty_weight = _class_weights(weights)
    _fill_what_is_always_there(weights, arch)
    if 'pos_embed' in weights:
        with naming(found.source):
            known, own = HF_EOMT, _dinov2_config(weights, arch, patch_size)
    else:
        known, own = HF_EOMT_DINOV3, _dinov3_config(found, weights, arch, img_size)
    return config | own, known.write(weights) | {'criterion.empty_weight': empty_weight}


def known_arch(found: ViTWeights) -> ViTArch:
    """The arch of a public model, inferred from the sizes of its weights.

    Raises:
        ValueError: If they are of none that is known.
    """
    given = infer_arch(found)
    fitting = [arch for arch in ARCHS.values() if all(arch_field(arch, name) == value for name, value in given.items())]
    if not fitting:
        raise ValueError(
            f'{found.source} is of no arch that has a name, and the number of heads cannot be inferred from weights: give '
            f'its config.'
        )
    return fitting[0]


def _fill_what_is_always_there(weights: StateDict, arch: ViTArch) -> None:
    """What their model has in any case, with values that change nothing."""
    dims = arch.embed_dims
    weights['attn_mask_probs'] = torch.zeros_like(weights['attn_mask_probs'])
    weights.setdefault('reg_token', torch.zeros(1, 0, dims))
    for i in range(arch.num_layers):
        for scale in ('ls1', 'ls2'):
            weights.setdefault(f'blocks.{i}.{scale}.gamma', torch.ones(dims))
        if 'pos_embed' in weights:
            weights.setdefault(f'blocks.{i}.attn.qkv.bias', torch.zeros(3 * dims))


def _dinov2_config(weights: StateDict, arch: ViTArch, patch_size: int) -> dict[str, Any]:
    grid = _grid(weights)
    if grid is None or grid[0] != grid[1]:
        raise ValueError(
            f'The position embedding has {weights["pos_embed"].shape[1]} positions, for images that are not square; Hugging '
            f"Face's EoMT takes square ones alone: start a run from the checkpoint with a square img_size first."
        )
    ratio, dims = arch.mlp_hidden_dims / arch.embed_dims, arch.embed_dims
    gated = arch.mlp == 'swiglu'
    hidden = {i: 8 * -(-int(i * dims * 2 / 3) // 8) for i in range(1, 17)}  # gated MLPs have two thirds of the width
    ratios = [i for i in hidden if hidden[i] == arch.mlp_hidden_dims] if gated else [ratio]
    if not ratios or ratios[0] != int(ratios[0]):
        raise ValueError(f'MLPs of {ratio:.3g} times the width cannot be expressed in the EoMT of Hugging Face.')
    return dict(
        image_size=grid[0] * patch_size,
        mlp_ratio=int(ratios[0]),
        use_swiglu_ffn=gated,
        model_type='eomt',
        architectures=['EomtForUniversalSegmentation'],
    )


def _dinov3_config(found: ViTWeights, weights: StateDict, arch: ViTArch, img_size: int | None) -> dict[str, Any]:
    if arch.mlp == 'swiglu':
        raise ValueError(
            f'{found.source} has gated MLPs; the EoMT of Hugging Face on DINOv3 has one activation for gates and heads, '
            f"where this model's are SiLU and GELU: it cannot be expressed there."
        )
    biases = 'blocks.0.attn.qkv.bias' in weights
    return dict(
        query_bias=biases,
        value_bias=biases,
        key_bias=False,
        intermediate_size=arch.mlp_hidden_dims,
        image_size=img_size or 640,
        rope_parameters=dict(rope_theta=arch.rope_theta, rope_type='default'),
        pos_embed_rescale=arch.rope_rescale,
        model_type='eomt_dinov3',
        architectures=['EomtDinov3ForUniversalSegmentation'],
    )


def _grid(weights: StateDict) -> tuple[int, int] | None:
    """Rows and columns of a learned position embedding; None if there is none, or it cannot be inferred."""
    if 'pos_embed' not in weights:
        return None
    try:
        return grid_of(weights['pos_embed'], weights.get(GRID), (0, 0))
    except ValueError:
        return None


def _pmt_weights_of(found: ViTWeights) -> StateDict:
    if not decoder_of(found.weights):
        raise ValueError(f'{found.source} ({found.kind}) has no decoder of a PMT: there is nothing to convert.')
    return {name: value for name, value in found.weights.items() if not name.startswith(UNUSED)}


def _weights_of(found: ViTWeights) -> StateDict:
    if decoder_of(found.weights):
        raise ValueError(f'{found.source} ({found.kind}) is a PMT, not an EoMT: write it with --to pmt.')
    if not found.is_eomt:
        raise ValueError(
            f'{found.source} ({found.kind}) is a ViT without the heads of an EoMT: nothing is to be converted, name it in '
            f'init_cfg of backbone and decode_head.'
        )
    weights = {name: value for name, value in found.weights.items() if not name.startswith(UNUSED)}
    if 'attn_mask_probs' not in weights:
        raise ValueError(f'{found.source} does not say how many blocks are joint ones: attn_mask_probs is missing.')
    _check_sizes(weights, found.source)
    return weights


def _check_sizes(weights: StateDict, source: str) -> None:
    """Blocks are alike, and all parts as wide as the patch embedding: no model is there to compare with."""
    dims = len(weights['patch_embed.proj.weight'])
    rows = {'attn.qkv.weight': 3 * dims, 'mlp.fc1.weight': None, 'mlp.fc1.bias': None, 'attn.qkv.bias': None}
    columns = ('attn.qkv.weight', 'attn.proj.weight', 'mlp.fc1.weight', 'query_embed.weight', 'class_head.weight')
    for name, value in weights.items():
        part, shape, first = name, list(value.shape), None
        if name.startswith('blocks.'):
            part = name.split('.', 2)[2]
            shape, first = list(weights[f'blocks.0.{part}'].shape), rows.get(part, dims)
        elif name.startswith(('mask_head.', 'upscale.', 'norm.')):
            first = dims
        elif name == 'class_head.bias':
            first = len(weights['class_head.weight'])
        shape[0] = first or shape[0]
        if part.endswith(columns):
            shape[-1] = dims
        if list(value.shape) != shape:
            raise ValueError(f'{source}: {name} is of shape {tuple(value.shape)}, and by other weights {tuple(shape)}.')


def _class_weights(weights: StateDict) -> torch.Tensor:
    values = torch.ones(len(weights['class_head.weight']))
    values[-1] = NO_OBJECT_WEIGHT
    return values
