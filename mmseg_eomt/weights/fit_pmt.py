"""Fitting a checkpoint to a model with a PMTHead: its decoder to the head, its ViT to the backbone, or a clear error."""

from typing import Any

from mmengine.logging import print_log
from torch import nn

from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.pmt_head import PMTHead
from mmseg_eomt.weights.checkpoint import Checkpoint, ViTWeights, needs_vit, parse_delta, tensors_of
from mmseg_eomt.weights.compare import compare, refuse
from mmseg_eomt.weights.decoder import OWN_MARK, OWN_PMT, decoder_of, has_vit
from mmseg_eomt.weights.fit import (
    Report,
    Target,
    check_eomt_parameters,
    eomt_parameters,
    fit,
    fit_checkpoint,
    fit_heads,
    is_alike,
    part_of_vit,
)
from mmseg_eomt.weights.key_mapping import StateDict
from mmseg_eomt.weights.pmt_formats import PMT_FORMATS


def fit_model(model: nn.Module, state_dict: StateDict) -> StateDict:
    """As :func:`.fit_checkpoint`, for models with a :class:`PMTHead` too: the weights that a model is to load.

    Raises:
        ValueError: If weights are missing or of another shape, with their names.
    """
    prefix, head = ('', model) if isinstance(model, PMTHead) else ('decode_head.', getattr(model, 'decode_head', None))
    checkpoint, given = Checkpoint.of(state_dict), tensors_of(state_dict)
    if not isinstance(head, PMTHead) or checkpoint.is_fitted or is_alike(model.state_dict(), given):
        return fit_checkpoint(model, state_dict)
    recognised = checkpoint.recognise(given)
    whole = {f'decode_head.{name}': value for name, value in given.items()} if OWN_MARK not in given else given
    if recognised.format in PMT_FORMATS:
        found = parse_delta(given, checkpoint.source)
    elif OWN_MARK in (given if prefix else whole):
        own = {name: value for name, value in whole.items() if name.startswith('decode_head.')}
        found = parse_delta(own, checkpoint.source)
    else:
        raise ValueError(
            f'{checkpoint.source} has no decoder of a PMT, which {type(model).__name__} takes: a ViT or an EoMT is read by '
            f'the backbone, as model.vit.pretrained.'
        )
    training = checkpoint.starts_training or not prefix
    fitted = {f'{prefix}{name}': value for name, value in fit_decoder(found, head, training).items()}
    if prefix:
        fitted |= _rest(model, found, given, training)
    return checkpoint.fitted(fitted)


def fit_decoder(found: ViTWeights, head: PMTHead, training: bool) -> StateDict:
    """The decoder of a checkpoint for a head; a table in the log says what became of it.

    Args:
        found: The checkpoint.
        head: The model's.
        training: Whether the model is to be trained: classes and queries may then be of another number.

    Returns:
        The head's whole state dict, in which what is randomly initialised stays as it is.

    Raises:
        ValueError: If it does not fit, with the first size that differs and how it is set, or with the names of weights.
    """
    own, decoder = head.state_dict(), decoder_of(found.weights)
    _check_sizes(found, decoder, own)
    report = Report(type(head).__name__, f'{found.source} ({found.kind})')
    # for what EoMT's and PMT's heads have alike, a decoder is as a whole EoMT
    alike = ViTWeights(found.source, found.kind, True, decoder)
    fit_heads(alike, decoder, Target(report.target, head.arch, own, head=head), report, training)
    new = [name for name in own if name not in decoder and name.startswith(tuple(line.split(' ')[0] for line in report.new))]
    optional = {name for name in own if name.endswith(('attn_mask_probs', 'num_batches_tracked')) or name in new}
    source = f'{found.source} ({found.kind})'
    refuse(source, compare(decoder, own, own.keys() - optional), 'set decode_head to what it was in training')
    report.loaded = f'{len(own.keys() & decoder.keys())} tensors'
    print_log(str(report), logger='current')
    return {**own, **decoder}


def _check_sizes(found: ViTWeights, decoder: StateDict, own: StateDict) -> None:
    """Compare the sizes that have a name in a config."""
    for name, of in {
        'embed_dims of arch': lambda d: d['query_embed.weight'].shape[1],
        'num_blocks': lambda d: _count(d, 'blocks'),
        'mlp_hidden_dims': lambda d: d['blocks.0.mlp.fc2.weight'].shape[1],
        'length of in_index': lambda d: _count(d, 'laterals'),
    }.items():
        if of(decoder) != of(own):
            raise ValueError(
                f'{found.source} ({found.kind}) has {name}={of(decoder)}, and PMTHead {of(own)}: set it in decode_head as '
                f'it was in training.'
            )


def _count(decoder: StateDict, part: str) -> int:
    return len({name.split('.')[1] for name in decoder if name.startswith(f'{part}.')})


def _rest(model: nn.Module, found: ViTWeights, given: StateDict, training: bool) -> StateDict:
    """What a whole model loads beside its decoder."""
    backbone: Any = getattr(model, 'backbone', None)
    if found.kind == OWN_PMT:
        own = {name: value for name, value in eomt_parameters(model).items() if name.startswith('backbone.')}
        if not training or any(name.startswith('backbone.') for name in given):
            check_eomt_parameters(own, given, found.source, new_classes=False)
        return {name: value for name, value in given.items() if not name.startswith('decode_head.')}
    if not has_vit(found.weights) or not isinstance(backbone, EoMTViT):
        if not training:
            raise ValueError(needs_vit(found))
        return {}
    target = Target(type(backbone).__name__, backbone.arch, part_of_vit(backbone), backbone.grid_size, 0)
    filled, report = fit(found, target, training=True)
    print_log(str(report), logger='current')
    return {f'backbone.{name}': value for name, value in {**backbone.state_dict(), **filled}.items()}
