"""Fitting a checkpoint to a model: other patch sizes, grids, classes and queries, or a clear error."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_eomt.models.arch import ViTArch
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.models.resize import grid_of, resize_patch_embed, resize_pos_embed
from mmseg_eomt.weights.arch import check_arch
from mmseg_eomt.weights.checkpoint import (
    OWN_KINDS,
    Checkpoint,
    ViTWeights,
    recognise,
    tensors_of,
)
from mmseg_eomt.weights.class_heads import convert_class_heads, with_class_heads
from mmseg_eomt.weights.compare import compare, refuse
from mmseg_eomt.weights.decoder import decoder_of
from mmseg_eomt.weights.key_mapping import GRID, UNUSED, StateDict
from mmseg_eomt.weights.pmt_formats import DECODER

HEADS = ('input_projection', 'query_embed', 'class_head', 'mask_head', 'upscale')  # no ViT holds them
REINS = ('rein', 'joint_rein')  # nor does an EoMT that was trained without


@dataclass(frozen=True)
class Target:
    """What is to be filled.

    Attributes:
        name: For the log.
        arch: Of the whole ViT.
        tensors: Parameters and buffers of a model, or of a part of one, under the names of our state dicts.
        grid_size: Rows and columns of patches.
        num_joint_blocks: Of the model.
        head: The model's, whose class head may be made of a linear one.
    """

    name: str
    arch: ViTArch
    tensors: StateDict
    grid_size: tuple[int, int] | None = None
    num_joint_blocks: int | None = None
    head: QueryHead | None = None


@dataclass
class Report:
    """What became of a checkpoint."""

    target: str
    source: str
    loaded: str = ''
    adapted: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = (
            ('loaded', [self.loaded]),
            ('adapted', self.adapted),
            ('ignored', self.ignored),
            ('randomly initialised', self.new),
        )
        lines = [f'    {label:<22}{"; ".join(values) or "nothing"}' for label, values in rows]
        return '\n'.join((f'{self.target}: {self.source}', *lines))


def fit(found: ViTWeights, target: Target, training: bool) -> tuple[StateDict, Report]:
    """Bring a checkpoint's weights to the names and shapes of a model.

    Args:
        found: The checkpoint.
        target: The model.
        training: Whether the model is to be trained: heads may then be randomly initialised. Otherwise it is to predict,
            and all must be there.

    Returns:
        Values for the target's tensors, without those that are randomly initialised, and what was done.

    Raises:
        ValueError: If weights are missing, or of a shape that nothing explains, with what was given, expected and their
            names.
    """
    report = Report(target.name, f'{found.source} ({found.kind})')
    if not training and decoder_of(found.weights):
        raise ValueError(
            f'{found.source} ({found.kind}) is a PMT, and {target.name} has no PMTHead: predict with the config that it was '
            f'trained with, as configs/eomt_pmt_*.py, or train on its ViT (model.vit.pretrained).'
        )
    if not found.is_eomt and not training:
        raise ValueError(f'{found.source} ({found.kind}) is a ViT without the heads of an EoMT: train it first.')
    check_arch(found, target.arch, target.tensors)
    weights = {name: value for name, value in found.weights.items() if not name.startswith(DECODER)}
    fold_class_position(weights)
    _fit_grid(found, weights, target, report)
    _fit_biases(found, weights, target, report)
    fit_heads(found, weights, target, report, training)
    own = target.tensors
    for name in [name for name in weights if name in own and weights[name].shape != own[name].shape]:
        if _may_be_new(name, found, report, training):
            del weights[name]
    blocks = {name.split('.')[1] for name in own if name.startswith('blocks.')}
    needed = [name for name in own if not _may_be_new(name, found, report, training)]
    known = [name for name in weights if _belongs(name, blocks, own)]
    cure = f'set the arch and the heads of {target.name} to those of the checkpoint'
    refuse(f'{found.source} ({found.kind})', compare(weights, own, needed, known), cure)
    filled = {name: value for name, value in weights.items() if name in own}
    report.loaded = f'{len(filled)} tensors{_blocks_loaded(filled, target)}'
    ignored = sorted(name.removeprefix(UNUSED) for name in weights if name.startswith(UNUSED))
    report.ignored = ignored if len(ignored) < 5 else [*ignored[:2], f'… ({len(ignored)} entries)']
    report.ignored += ['the decoder of a PMT'] if any(name.startswith(DECODER) for name in found.weights) else []
    absent = [name for name in own if name not in filled and not name.endswith('attn_mask_probs')]
    remade = [name for name in absent if _is_told(name, report)]
    report.new += dict.fromkeys(name.split('.')[0] for name in absent if name not in remade)
    return filled, report


def fold_class_position(weights: StateDict) -> None:
    """Add the class token's position to the token, as timm does."""
    place = weights.pop('cls_pos_embed', None)
    if place is not None and 'cls_token' in weights:
        weights['cls_token'] = weights['cls_token'] + place


def _fit_grid(found: ViTWeights, weights: StateDict, target: Target, report: Report) -> None:
    """Resize what depends on patch size and grid."""
    patches = target.tensors.get('patch_embed.proj.weight')
    if patches is None:
        return
    given, pixels = weights['patch_embed.proj.weight'].shape[-1], patches.shape[-1]
    if given != pixels:
        weights['patch_embed.proj.weight'] = resize_patch_embed(weights['patch_embed.proj.weight'], pixels)
        report.adapted.append(f'patches {given} → {pixels} pixels')
    noted = weights.pop('pos_grid', None)
    if 'pos_embed' not in target.tensors or target.grid_size is None:
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


def _fit_biases(found: ViTWeights, weights: StateDict, target: Target, report: Report) -> None:
    """Zero biases where a checkpoint omits what is zero, as timm does; none where the model has none."""
    absent = not any(name.endswith('attn.qkv.bias') for name in weights) and found.kind not in OWN_KINDS
    if absent and target.arch.qkv_bias == 'qv':
        names = [name for name in target.tensors if name.endswith('attn.qkv.bias')]
        weights.update({name: torch.zeros(target.tensors[name].shape) for name in names})
        report.adapted.append(f'{len(names)} biases of queries and values that the file omits are zero')
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


def fit_heads(found: ViTWeights, weights: StateDict, target: Target, report: Report, training: bool) -> None:
    """Classes, queries, upscaling and mask probabilities of another number."""
    own = target.tensors
    if not found.is_eomt or 'query_embed.weight' not in own:
        return
    problems = _fit_class_head(found, weights, target, report, training)
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
    if joint is not None and target.num_joint_blocks is not None and joint != target.num_joint_blocks:
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


def _fit_class_head(found: ViTWeights, weights: StateDict, target: Target, report: Report, training: bool) -> list[str]:
    """A class head of another number of classes, or of another kind; what is told where it is not to be trained."""
    problems = []
    given, wanted = (len(d.get('class_head.weight', [0])) - 1 for d in (weights, target.tensors))
    if given != wanted:
        problems.append(f'{given or "no"} classes, the model {wanted}')
        report.new.append(f'class_head ({given or "no"} classes in the checkpoint, {wanted} here)')
        for name in [name for name in weights if name.startswith('class_head.')]:
            del weights[name]
    if target.head is not None:
        converted = convert_class_heads(target.head, weights, f'{found.source} ({found.kind})', training)
        weights.update(converted.values)
        report.adapted += converted.adapted
        report.new += converted.new
    return problems


def _may_be_new(name: str, found: ViTWeights, report: Report, training: bool) -> bool:
    """Whether a tensor of the model may be missing in the checkpoint."""
    part = name.split('.')[0]
    if part == 'attn_mask_probs':
        return True
    if training and part in REINS:
        return not any(given.startswith(f'{part}.') for given in found.weights)
    if not training or part not in HEADS:
        return False
    return not found.is_eomt or part == 'input_projection' or _is_told(name, report)


def _is_told(name: str, report: Report) -> bool:
    """Whether a line of the report says that a tensor, or the part that it is in, is randomly initialised."""
    return any(f'{name}.'.startswith(f'{line.split(" ")[0]}.') for line in report.new)


def _belongs(name: str, blocks: Iterable[str], own: StateDict) -> bool:
    """Whether an entry of a checkpoint is of a part that the target has, so that it should have a place there."""
    if name.startswith(UNUSED):
        return False
    if name.startswith('blocks.'):
        return name.split('.')[1] in blocks
    whole = {'patch_embed.proj.weight', 'query_embed.weight'} <= own.keys()
    return whole or any(other.split('.')[0] == name.split('.')[0] for other in own)


def _blocks_loaded(filled: StateDict, target: Target) -> str:
    numbers = sorted({int(name.split('.')[1]) for name in filled if name.startswith('blocks.')})
    return f', blocks {numbers[0]} to {numbers[-1]} of {target.arch.num_layers}' if numbers else ''


def vit_names(module: EoMTViT | EoMTHead) -> dict[str, str]:
    """Names of what an :class:`EoMTViT` or :class:`EoMTHead` gets from a checkpoint, and of the same in a whole ViT."""
    names = {}
    for name in module.state_dict():
        if name.startswith('blocks.'):
            _, index, rest = name.split('.', 2)
            names[name] = f'blocks.{int(index) + module.first_block}.{rest}'
        elif name != GRID:
            names[name] = name
    return names


def part_of_vit(module: EoMTViT | EoMTHead) -> StateDict:
    """What an :class:`EoMTViT` or :class:`EoMTHead` gets from a checkpoint, under the names of a whole ViT."""
    own = module.state_dict()
    return {whole: own[name] for name, whole in vit_names(module).items()}


def fit_checkpoint(model: nn.Module, state_dict: StateDict) -> StateDict:
    """The weights that a model is to load from a checkpoint; a table in the log says what became of each part.

    What the checkpoint is loaded for (:attr:`.Checkpoint.purpose`) decides whether heads of another size may be randomly
    initialised: not to predict, and not in a run that is resumed.

    Args:
        model: A segmentor, an :class:`EoMTViT` or an :class:`EoMTHead`, without adapters.
        state_dict: The checkpoint's, in any known format.

    Returns:
        ``state_dict`` itself where its names and shapes are the model's, or where the model is no EoMT.

    Raises:
        ValueError: If weights are missing or of another shape, with their names.
    """
    checkpoint = Checkpoint.of(state_dict)
    if checkpoint.is_fitted:
        return state_dict
    source, given, own = checkpoint.source, tensors_of(state_dict), model.state_dict()
    parts = _parts_of(model)
    if not parts:
        if eomt_parameters(model) and recognise(given) is not None:
            raise ValueError(
                f'{source} is a whole ViT or EoMT, and this model is not made of EoMTViT and EoMTHead: put it into init_cfg '
                f'of the part that it is for.'
            )
        return checked(model, state_dict, checkpoint)
    is_whole = '' not in parts
    recognised = checkpoint.recognise(given)
    own_kind = is_whole and recognised.is_own
    foreign = not own_kind and (recognised.is_own or recognised.format is not None)
    if own_kind and given.keys() != state_dict.keys():  # of a compiled model
        state_dict = checkpoint.attach(given)
    if not foreign and is_alike(own, given):
        return state_dict
    if is_whole and not (foreign or own_kind) and given.keys() & own.keys():
        return checked(model, state_dict, checkpoint)
    found = checkpoint.parse(given)  # an error tells what it has, and which formats are known
    first = next(iter(parts.values()))
    names = {f'{prefix}{name}': whole for prefix, part in parts.items() for name, whole in vit_names(part).items()}
    tensors = {whole: own[name] for name, whole in names.items()}
    grid, head = getattr(first, 'grid_size', None), next((p for p in parts.values() if isinstance(p, EoMTHead)), None)
    target = Target(type(model).__name__, first.arch, tensors, grid, first.num_joint_blocks, head)
    filled, report = fit(found, target, checkpoint.starts_training or not is_whole)
    print_log(str(report), logger='current')
    # what is randomly initialised stays as it is: mmengine would call it missing
    fitted = {name: value for name, value in own.items() if name.startswith(tuple(parts))}
    fitted |= {name: filled[whole] for name, whole in names.items() if whole in filled}
    if is_whole and not foreign:
        fitted |= {name: value for name, value in state_dict.items() if not name.startswith(tuple(parts))}
    return checkpoint.fitted(fitted)


def checked(model: nn.Module, state_dict: StateDict, checkpoint: Checkpoint) -> StateDict:
    """The state dict for a model with parts of an EoMT among others, once all of their weights are found in it."""
    state_dict = with_class_heads(model, state_dict, checkpoint)
    check_eomt_parameters(eomt_parameters(model), state_dict, checkpoint.source, checkpoint.starts_training)
    return state_dict


def _parts_of(model: nn.Module) -> dict[str, EoMTViT | EoMTHead]:
    """The parts of a whole EoMT, or the one part that the model is, by the prefix of their names."""
    if isinstance(model, (EoMTViT, EoMTHead)):
        return {'': model}
    backbone, head = getattr(model, 'backbone', None), getattr(model, 'decode_head', None)
    if isinstance(backbone, EoMTViT) and isinstance(head, EoMTHead):
        return {'backbone.': backbone, 'decode_head.': head}
    return {}


def is_alike(own: StateDict, given: StateDict) -> bool:
    """Whether a checkpoint has a model's names and shapes, and positions for the model's grid where it notes one."""
    grids = [name for name in (GRID, f'backbone.{GRID}') if name in own]
    if any(name in given and not torch.equal(given[name].cpu(), own[name].cpu()) for name in grids):
        return False
    return own.keys() - grids == given.keys() - grids and all(v.shape == own[name].shape for name, v in given.items())


def eomt_parameters(model: nn.Module) -> StateDict:
    """The parameters of each :class:`EoMTViT` and :class:`QueryHead` inside a model, by their names in it."""
    parts = tuple(f'{name}.' for name, m in model.named_modules() if name and isinstance(m, (EoMTViT, QueryHead)))
    return {name: parameter for name, parameter in model.named_parameters() if parts and name.startswith(parts)}


def check_eomt_parameters(own: StateDict, state_dict: StateDict, source: str, new_classes: bool) -> None:
    """Make sure that every weight of the EoMT parts inside a model is there; mmengine would go on without.

    Args:
        own: The model's (:func:`eomt_parameters`).
        state_dict: What it is to load.
        source: Its path or URL, for messages.
        new_classes: Whether the class head may be missing or of another number of classes, and starts randomly initialised.

    Raises:
        ValueError: If weights are missing or of another shape, with their names.
    """
    given = {name.removeprefix('module.'): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    needed = {name: value for name, value in own.items() if not (new_classes and '.class_head.' in name)}
    refuse(source, compare(given, needed, known=()), 'set arch and num_classes as they were in training')
