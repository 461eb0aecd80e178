"""Writing a whole EoMT in other formats: the toolbox's, the authors', Hugging Face's."""

from collections.abc import Sequence
from typing import Any

import torch

from mmseg_eomt.weights.adapt import fold_class_position
from mmseg_eomt.weights.eomt_formats import EOMT, EOMT_DINOV3, HF_EOMT, HF_EOMT_DINOV3
from mmseg_eomt.weights.format import UNUSED, is_gated
from mmseg_eomt.weights.read import Pretrained, to_segmentor
from mmseg_eomt.weights.rules import StateDict

NO_OBJECT_WEIGHT = 0.1  # of "no object" in the authors' class loss, which their checkpoints hold
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def to_mmseg(found: Pretrained, meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint for :class:`EoMTViT` and :class:`EoMTHead` in ``EncoderDecoder``.

    Args:
        found: A whole EoMT.
        meta: What is known beside the weights, such as ``dataset_meta``.

    Returns:
        ``meta`` and ``state_dict``.

    Raises:
        ValueError: If it is a ViT alone.
    """
    weights = _weights_of(found)
    fold_class_position(weights)
    return dict(meta=meta, state_dict=to_segmentor(weights, len(weights['attn_mask_probs'])))


def to_eomt(found: Pretrained) -> StateDict:
    """A state dict for the public implementation, with what its ``LightningModule`` holds beside the network.

    Raises:
        ValueError: If it is a ViT alone, or has weights that the implementation has no place for.
    """
    weights = _weights_of(found)
    if 'pos_embed' in weights and 'reg_token' not in weights and 'cls_token' in weights:  # timm then has a place for it
        weights.setdefault('cls_pos_embed', torch.zeros_like(weights['cls_token']))
    out = (EOMT if 'pos_embed' in weights else EOMT_DINOV3).write(weights)
    for name, values in IMAGENET.items():
        out[f'network.encoder.pixel_{name}'] = torch.tensor(values).view(1, 3, 1, 1)
    out['criterion.empty_weight'] = _class_weights(weights)
    return out


def to_hugging_face(
    found: Pretrained, num_heads: int | None = None, img_size: int | None = None, classes: Sequence[str] | None = None
) -> tuple[dict[str, Any], StateDict]:
    """Config and state dict for ``EomtForUniversalSegmentation`` or ``EomtDinov3ForUniversalSegmentation``.

    Its mask probabilities are zero: evaluation there masks where they are not, and here never.

    Args:
        found: A whole EoMT.
        num_heads: Attention heads a block. Default: of 64 channels each, and of 128 for 4,096.
        img_size: Side of the images in pixels, for rotary positions; learned ones tell it. Default: 640.
        classes: Names of the classes.

    Raises:
        ValueError: If their model cannot express it, with the reason.
    """
    weights = _weights_of(found)
    fold_class_position(weights)
    dims, gated = weights['patch_embed.proj.weight'].shape[0], is_gated(weights)
    patch_size, hidden = weights['patch_embed.proj.weight'].shape[-1], weights['blocks.0.mlp.fc2.weight'].shape[1]
    num_heads = num_heads or dims // (128 if dims == 4096 else 64)
    if num_heads < 1 or dims % num_heads:
        raise ValueError(f'{num_heads} heads do not divide {dims} channels: give --num-heads as the model has it.')
    num_classes = len(weights['class_head.weight']) - 1
    labels = dict(enumerate(classes or (f'LABEL_{i}' for i in range(num_classes))))
    config = dict(
        hidden_size=dims,
        num_hidden_layers=found.num_layers,
        num_attention_heads=num_heads,
        patch_size=patch_size,
        num_blocks=len(weights['attn_mask_probs']),
        num_queries=len(weights['query_embed.weight']),
        num_upscale_blocks=len({name.split('.')[1] for name in weights if name.startswith('upscale.')}),
        num_register_tokens=weights['reg_token'].shape[1] if 'reg_token' in weights else 0,
        id2label={str(i): name for i, name in labels.items()},
        label2id={name: i for i, name in labels.items()},
        dtype='float32',
    )
    if 'cls_token' not in weights:
        raise ValueError(f'{found.source} has no class token, and the EoMT of Hugging Face always has one.')
    weights.setdefault('reg_token', torch.zeros(1, 0, dims))
    for i in range(found.num_layers):
        for scale in ('ls1', 'ls2'):  # their blocks always have a LayerScale
            weights.setdefault(f'blocks.{i}.{scale}.gamma', torch.ones(dims))
    weights['attn_mask_probs'] = torch.zeros_like(weights['attn_mask_probs'])
    empty_weight = _class_weights(weights)
    if 'pos_embed' in weights:
        config |= _dinov2_config(weights, gated, hidden / dims, patch_size)
        out = HF_EOMT.write(weights)
    else:
        if gated:
            raise ValueError(
                f'{found.source} has gated MLPs; the EoMT of Hugging Face on DINOv3 has one activation for gates and heads, '
                f"where this model's are SiLU and GELU: it cannot be expressed there."
            )
        biases = {f'{part}_bias': 'blocks.0.attn.qkv.bias' in weights for part in ('query', 'value')}
        config |= dict(biases, key_bias=False, intermediate_size=hidden, image_size=img_size or 640, layer_norm_eps=1e-5)
        config |= dict(rope_parameters=dict(rope_theta=100.0, rope_type='default'), model_type='eomt_dinov3')
        config |= dict(architectures=['EomtDinov3ForUniversalSegmentation'])
        out = HF_EOMT_DINOV3.write(weights)
    return config, out | {'criterion.empty_weight': empty_weight}


def _dinov2_config(weights: StateDict, gated: bool, ratio: float, patch_size: int) -> dict[str, Any]:
    places = weights['pos_embed'].shape[1]
    side = round(places**0.5)
    if side * side != places:
        raise ValueError(
            f'The position embedding has {places} places, and the EoMT of Hugging Face takes square images alone: load the '
            f'checkpoint with a square img_size first.'
        )
    dims = weights['norm.weight'].numel()
    hidden = {i: 8 * -(-int(i * dims * 2 / 3) // 8) for i in range(1, 17)}  # gated MLPs have two thirds of the width
    ratios = [i for i in hidden if hidden[i] == round(ratio * dims)] if gated else [ratio]
    if not ratios or ratios[0] != int(ratios[0]):
        raise ValueError(f'MLPs of {ratio:.3g} times the width cannot be expressed in the EoMT of Hugging Face.')
    return dict(
        image_size=side * patch_size,
        mlp_ratio=int(ratios[0]),
        use_swiglu_ffn=gated,
        layer_norm_eps=1e-6,
        model_type='eomt',
        architectures=['EomtForUniversalSegmentation'],
    )


def _weights_of(found: Pretrained) -> StateDict:
    if not found.is_eomt:
        raise ValueError(
            f'{found.source} ({found.kind}) is a ViT without the heads of an EoMT: nothing is to be converted, name it in '
            f'init_cfg of backbone and decode_head.'
        )
    weights = {name: value for name, value in found.weights.items() if not name.startswith(UNUSED)}
    if 'attn_mask_probs' not in weights:
        raise ValueError(f'{found.source} does not say how many blocks are joint ones: attn_mask_probs is missing.')
    return weights


def _class_weights(weights: StateDict) -> torch.Tensor:
    values = torch.ones(len(weights['class_head.weight']))
    values[-1] = NO_OBJECT_WEIGHT
    return values
