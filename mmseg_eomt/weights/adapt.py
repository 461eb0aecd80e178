"""Fitting a checkpoint's weights to a model of another size of patches or images, number of classes or queries."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmseg_eomt.models.arch import ARCHS, ViTArch
from mmseg_eomt.weights.format import UNUSED, is_gated
from mmseg_eomt.weights.read import OWN_KINDS, Pretrained
from mmseg_eomt.weights.resize import grid_of, resize_patch_embed, resize_pos_embed
from mmseg_eomt.weights.rules import StateDict

NUMBER = 'a number'  # for values that weights do not tell
HEADS = ('input_projection', 'query_embed', 'class_head', 'mask_head', 'upscale')  # no ViT holds them


@dataclass(frozen=True)
class Target:
    """What is to be filled.

    Attributes:
        name: For the log.
        arch: Of the whole ViT.
        tensors: Parameters and buffers of a model, or of a part of one, under the names of our state dicts.
        grid_size: Rows and columns of patches.
        num_joint_blocks: Of the model.
    """

    name: str
    arch: ViTArch
    tensors: StateDict
    grid_size: tuple[int, int] | None = None
    num_joint_blocks: int | None = None


@dataclass
class Report:
    """What became of a checkpoint."""

    target: str
    source: str
    loaded: str = ''
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = (('loaded', [self.loaded]), ('adapted', self.adapted), ('left out', self.left_out), ('newly made', self.new))
        lines = [f'    {label:<12}{"; ".join(values) or "nothing"}' for label, values in rows]
        return '\n'.join((f'{self.target}: {self.source}', *lines))


def fit(found: Pretrained, target: Target, training: bool) -> tuple[StateDict, Report]:
    """Bring a checkpoint's weights to the names and shapes of a model.

    Args:
        found: The checkpoint.
        target: The model.
        training: Whether the model is to be trained: heads may then be made anew. Otherwise it is to predict, and all must
            be there.

    Returns:
        Values for the target's tensors, less those that are made anew, and what was done.

    Raises:
        ValueError: If weights are missing, or of a shape that nothing explains, with what was given, expected and their
            names.
    """
    report = Report(target.name, f'{found.source} ({found.kind})')
    if not found.is_eomt and not training:
        raise ValueError(f'{found.source} ({found.kind}) is a ViT without the heads of an EoMT: train it first.')
    check_arch(found, target)
    weights = dict(found.weights)
    fold_class_position(weights)
    _fit_grid(found, weights, target, report)
    _fit_biases(found, weights, target, report)
    _fit_heads(found, weights, target, report, training)
    own = target.tensors
    filled = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    unexplained = [name for name in own if name not in filled and not _may_be_new(name, found, report, training)]
    blocks = {name.split('.')[1] for name in own if name.startswith('blocks.')}
    unexplained += [name for name in weights if name not in own and _belongs(name, blocks, own)]
    if unexplained:
        told = [
            f'{name}: checkpoint {_shape(weights.get(name))}, model {_shape(own.get(name))}' for name in sorted(unexplained)
        ]
        raise ValueError(
            f'{found.source} ({found.kind}) does not fit {target.name} in {len(told)} weights:\n  ' + '\n  '.join(told)
        )
    report.loaded = f'{len(filled)} tensors{_told_blocks(filled, target)}'
    left_out = sorted(name.removeprefix(UNUSED) for name in weights if name.startswith(UNUSED))
    report.left_out = left_out if len(left_out) < 5 else [*left_out[:2], f'… ({len(left_out)} entries)']
    absent = [name for name in own if name not in filled and not name.endswith('attn_mask_probs')]
    remade = {line.split(' ')[0] for line in report.new}
    report.new += [part for part in dict.fromkeys(name.split('.')[0] for name in absent) if part not in remade]
    return filled, report


def check_arch(found: Pretrained, target: Target) -> None:
    """Compare what a checkpoint's weights tell of its ViT with the arch of the model.

    Raises:
        ValueError: If they differ, with the field and, where there is one, the arch that fits.
    """
    arch, given = target.arch, described(found)
    differing = {name: (value, field_of(arch, name)) for name, value in given.items() if value != field_of(arch, name)}
    if differing:
        fitting = [known for known, a in ARCHS.items() if all(field_of(a, n) == v for n, v in given.items())]
        cure = f"arch='{fitting[0]}' fits" if fitting else 'set arch of backbone and decode_head, or checkpoint'
        has, asked = (', '.join(f'{name}={pair[i]}' for name, pair in differing.items()) for i in (0, 1))
        raise ValueError(f'{found.source} has {has}, but arch asks for {asked}: {cure}.')
    periods = found.weights.get(f'{UNUSED}rope_embed.periods')
    if periods is not None and arch.rope_theta is not None:
        number = arch.head_dims // 4
        expected = arch.rope_theta ** (torch.arange(number) / number)
        if len(periods) != number or not torch.allclose(periods.float().cpu(), expected, rtol=1e-2):
            raise ValueError(
                f'{found.source} has {len(periods)} rotary periods from {periods.min():.3g} to {periods.max():.3g}, but '
                f'num_heads={arch.num_heads} and rope_theta={arch.rope_theta} of arch give {number}, from 1 to '
                f'{expected.max():.3g}.'
            )
    given = found.weights['reg_token'].shape[1] if 'reg_token' in found.weights else 0
    if 'patch_embed.proj.weight' in target.tensors:
        wanted = target.tensors['reg_token'].shape[1] if 'reg_token' in target.tensors else 0
        if given != wanted:
            raise ValueError(
                f'{found.source} has {given} register tokens, but num_register_tokens is {wanted}: set it to {given}, or '
                f'use a checkpoint with {wanted}.'
            )


def described(found: Pretrained) -> dict[str, object]:
    """What a checkpoint's weights tell of its ViT, under the names of :class:`ViTArch`; the number of heads they do not."""
    weights = found.weights
    return dict(
        embed_dims=weights['patch_embed.proj.weight'].shape[0],
        num_layers=found.num_layers,
        mlp='swiglu' if is_gated(weights) else 'gelu',
        mlp_hidden_dims=weights['blocks.0.mlp.fc2.weight'].shape[1],
        rope_theta=None if 'pos_embed' in weights else NUMBER,
        layer_scale_init=NUMBER if 'blocks.0.ls1.gamma' in weights else None,
        class_token='cls_token' in weights,
        pre_norm='norm_pre.weight' in weights,
    )


def field_of(arch: ViTArch, name: str) -> object:
    """What :func:`described` would tell of a checkpoint of an arch."""
    if name == 'mlp':
        return 'swiglu' if arch.mlp == 'swiglu' else 'gelu'  # other activations have the same weights
    value = getattr(arch, name)
    return NUMBER if name in ('rope_theta', 'layer_scale_init') and value is not None else value


def fold_class_position(weights: StateDict) -> None:
    """Add the class token's place to the token, as timm does."""
    place = weights.pop('cls_pos_embed', None)
    if place is not None and 'cls_token' in weights:
        weights['cls_token'] = weights['cls_token'] + place


def _fit_grid(found: Pretrained, weights: StateDict, target: Target, report: Report) -> None:
    """Resize what depends on patch size and grid."""
    patches = target.tensors.get('patch_embed.proj.weight')
    if patches is None:
        return
    given, wanted = weights['patch_embed.proj.weight'].shape[-1], patches.shape[-1]
    if given != wanted:
        weights['patch_embed.proj.weight'] = resize_patch_embed(weights['patch_embed.proj.weight'], wanted)
        report.adapted.append(f'patches {given} → {wanted} pixels')
    noted = weights.pop('pos_grid', None)
    if 'pos_embed' not in target.tensors:
        return
    places, wanted = weights['pos_embed'].shape[1], target.grid_size
    side = round(places**0.5)
    if noted is None and side * side == places and found.kind not in OWN_KINDS:
        noted = torch.tensor((side, side))  # public models are made for square images
    try:
        grid = grid_of(weights['pos_embed'], noted, wanted)
    except ValueError as error:
        raise ValueError(f'{found.source}: {error}') from error
    if grid != wanted:
        weights['pos_embed'] = resize_pos_embed(weights['pos_embed'], grid, wanted)
        report.adapted.append(f'positions {grid[0]}×{grid[1]} → {wanted[0]}×{wanted[1]}')


def _fit_biases(found: Pretrained, weights: StateDict, target: Target, report: Report) -> None:
    """Zero biases where a checkpoint leaves out what is zero, as timm does; none where the model has none."""
    absent = not any(name.endswith('attn.qkv.bias') for name in weights) and found.kind not in OWN_KINDS
    if absent and target.arch.qkv_bias == 'qv':
        names = [name for name in target.tensors if name.endswith('attn.qkv.bias')]
        weights.update({name: torch.zeros(target.tensors[name].shape) for name in names})
        report.adapted.append(f'{len(names)} biases of queries and values that the file leaves out are zero')
    for name in [name for name in weights if name.endswith('attn.qkv.bias')]:
        kept = target.arch.qkv_bias
        parts = dict(zip('qkv', weights[name].chunk(3)))
        lost = [part for part, value in parts.items() if part not in kept and value.any()]
        if lost:
            raise ValueError(
                f'{found.source}: {name} has a bias for {lost}, and qkv_bias of arch is {kept!r}: set it to what the '
                f'checkpoint has.'
            )
        if not kept:
            del weights[name]


def _fit_heads(found: Pretrained, weights: StateDict, target: Target, report: Report, training: bool) -> None:
    """Classes, queries, upscaling and mask probabilities of another number."""
    own, problems = target.tensors, []
    if 'query_embed.weight' not in own:
        return
    if not found.is_eomt:
        return
    given, wanted = (len(d.get('class_head.weight', [0])) - 1 for d in (weights, own))
    if given != wanted:
        problems.append(f'{given or "no"} classes, the model {wanted}')
        report.new.append(f'class_head ({given or "no"} classes in the checkpoint, {wanted} here)')
        for name in [name for name in weights if name.startswith('class_head.')]:
            del weights[name]
    queries, wanted = weights['query_embed.weight'], len(own['query_embed.weight'])
    if len(queries) != wanted:
        problems.append(f'{len(queries)} queries, the model {wanted}')
        kept = 'the first are kept' if wanted < len(queries) else 'they are repeated'
        report.adapted.append(f'queries {len(queries)} → {wanted}, {kept}')
        weights['query_embed.weight'] = queries[torch.arange(wanted) % len(queries)]
    given, wanted = (len({name.split('.')[1] for name in d if name.startswith('upscale.')}) for d in (weights, own))
    if given != wanted:
        problems.append(f'{given} upscaling blocks, the model {wanted}')
        report.new.append(f'upscale ({given} blocks in the checkpoint, {wanted} here)')
        for name in [name for name in weights if name.startswith('upscale.')]:
            del weights[name]
    joint = found.num_joint_blocks
    if joint is not None and joint != target.num_joint_blocks:
        problems.append(f'{joint} joint blocks, the model {target.num_joint_blocks}')
        report.adapted.append(f'joint blocks {joint} → {target.num_joint_blocks}')
        if weights.pop('attn_mask_probs').any():
            report.new.append('attn_mask_probs (masked attention is not annealed in the checkpoint)')
        else:
            weights['attn_mask_probs'] = torch.zeros(target.num_joint_blocks)
    if problems and not training:
        raise ValueError(
            f'{found.source} ({found.kind}) has {"; ".join(problems)}: to predict with it or to resume it, set '
            f'num_classes, num_queries, num_joint_blocks and patch_size to those of the checkpoint; to start a new run from '
            f'it, put it into load_from.'
        )


def _may_be_new(name: str, found: Pretrained, report: Report, training: bool) -> bool:
    """Whether a tensor of the model may be missing in the checkpoint."""
    part = name.split('.')[0]
    if part == 'attn_mask_probs':
        return True
    if not training or part not in HEADS:
        return False
    return not found.is_eomt or part == 'input_projection' or any(line.split(' ')[0] == part for line in report.new)


def _belongs(name: str, blocks: Iterable[str], own: StateDict) -> bool:
    """Whether an entry of a checkpoint is of a part that the target has, so that it should have a place there."""
    if name.startswith(UNUSED):
        return False
    if name.startswith('blocks.'):
        return name.split('.')[1] in blocks
    whole = {'patch_embed.proj.weight', 'query_embed.weight'} <= own.keys()
    return whole or any(other.split('.')[0] == name.split('.')[0] for other in own)


def _told_blocks(filled: StateDict, target: Target) -> str:
    numbers = sorted({int(name.split('.')[1]) for name in filled if name.startswith('blocks.')})
    return f', blocks {numbers[0]} to {numbers[-1]} of {target.arch.num_layers}' if numbers else ''


def _shape(value: Tensor | None) -> object:
    return 'absent' if value is None else tuple(value.shape)
