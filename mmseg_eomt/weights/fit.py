"""Whether a checkpoint fills the EoMT parts of a segmentor, and making it do so; mmengine would go on without the rest."""

from collections import OrderedDict

import torch
from mmengine.logging import print_log
from mmengine.runner import checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.names import adapter_names, is_adapter, plain_name, tuner_layers
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.adapt import Target, fit
from mmseg_eomt.weights.loading import part_of_vit
from mmseg_eomt.weights.read import is_own, recognise, recognise_part, tensors_of, to_segmentor, understand
from mmseg_eomt.weights.rules import StateDict

_FITTED = 'mmseg_eomt.fitted'
SOURCE = 'mmseg_eomt.source'  # in the metadata of a state dict: its path or URL


def fit_checkpoint(model: nn.Module, state_dict: StateDict, training: bool, source: str) -> StateDict:
    """The weights that a segmentor is to load from a checkpoint: what the table in the log says became of it.

    Args:
        model: A segmentor.
        state_dict: The checkpoint's, in any known format.
        training: Whether training starts from it, so that heads of another size may be made anew.
        source: Its path or URL, for messages.

    Returns:
        ``state_dict`` itself where its names and shapes are the model's, or where the model is no EoMT.

    Raises:
        ValueError: If weights are missing or of another shape, with their names.
    """
    if is_fitted(state_dict):
        return state_dict
    backbone, head = getattr(model, 'backbone', None), getattr(model, 'decode_head', None)
    given = tensors_of(state_dict)
    if not (isinstance(backbone, EoMTViT) and isinstance(head, EoMTHead)):
        parts = any(isinstance(module, (EoMTViT, EoMTHead)) for module in model.modules())
        if parts and recognise(given) is not None:
            raise ValueError(
                f'{source} is a whole ViT or EoMT, and this model is not made of EoMTViT and EoMTHead: put it into init_cfg '
                f'of the part that it is for.'
            )
        check_parts(model, state_dict, source, training)
        return state_dict
    if is_own(given) and given.keys() != state_dict.keys():  # of a compiled model
        state_dict = OrderedDict(given)
    adapted = tuner_layers(model) or any(is_adapter(name) for name in state_dict)
    foreign = not is_own(given) and recognise_part(given)[0] is not None
    if not (adapted or foreign or given.keys() & model.state_dict().keys()):
        understand(state_dict, source)  # tells what it has, and what is known
    if adapted or not (foreign or _differs(model, given)):
        check_parts(model, state_dict, source, training)
        return state_dict
    target = Target(
        type(model).__name__,
        backbone.arch,
        part_of_vit(backbone) | part_of_vit(head),
        backbone.grid_size,
        head.num_joint_blocks,
    )
    filled, report = fit(understand(state_dict, source), target, training)
    print_log(str(report), logger='current')
    fitted = to_segmentor(filled, head.num_joint_blocks)
    if backbone.pos_embed is not None:
        fitted['backbone.pos_grid'] = backbone.pos_grid
    others = {} if foreign else state_dict
    fitted |= {name: value for name, value in others.items() if not name.startswith(('backbone.', 'decode_head.'))}
    # what is newly made stays as it is: mmengine would call it missing
    own = {name: v for name, v in model.state_dict().items() if name.startswith(('backbone.', 'decode_head.'))}
    return _as_fitted({**own, **fitted}, source)


def is_fitted(state_dict: StateDict) -> bool:
    """Whether :func:`fit_checkpoint` has seen to a state dict already, somewhere on its way through a Runner."""
    return _FITTED in getattr(state_dict, '_metadata', {})


def load_fitted(model: nn.Module, state_dict: StateDict, source: str) -> None:
    """Load what :func:`fit_checkpoint` returned: mmengine's function, which would see to it once more otherwise."""
    checkpoint.load_state_dict(model, _as_fitted(state_dict, source), logger='current')


def _as_fitted(state_dict: StateDict, source: str) -> StateDict:
    state_dict = OrderedDict(state_dict)
    state_dict._metadata = {_FITTED: True, SOURCE: source}
    return state_dict


def _differs(model: nn.Module, given: StateDict) -> bool:
    """Whether a segmentor's checkpoint has other names, shapes or places of patches than the model."""
    own, grid = model.state_dict(), 'backbone.pos_grid'
    if not is_own(given):
        return False
    if grid in own and grid in given and not torch.equal(given[grid].cpu(), own[grid].cpu()):
        return True
    return own.keys() - {grid} != given.keys() - {grid} or any(
        value.shape != own[name].shape for name, value in given.items()
    )


def check_parts(model: nn.Module, state_dict: dict[str, Tensor], source: str, new_classes: bool) -> None:
    """Make sure that every weight of an EoMT backbone or head inside a model is there; adapters are checked elsewhere.

    Args:
        model: A segmentor, plain or adapted.
        state_dict: What it is to load.
        source: Its path or URL, for messages.
        new_classes: Whether the class head may be missing or of another number of classes, and starts anew.

    Raises:
        ValueError: If weights are missing or of another shape, with their names.
    """
    given = {name.removeprefix('module.'): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    parts = tuple(f'{name}.' for name, m in model.named_modules() if name and isinstance(m, (EoMTViT, EoMTHead)))
    absent, adapters = [], set(adapter_names(model))
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if not name.startswith(parts) or name in adapters:
            continue
        if '.class_head.' in name and new_classes:
            continue
        value = given.get(name, given.get(plain))
        if value is not None and name.endswith('.pos_embed'):
            continue  # resized by the backbone
        if value is None or value.shape != parameter.shape:
            found = 'absent' if value is None else tuple(value.shape)
            absent.append(f'{plain}: checkpoint {found}, model {tuple(parameter.shape)}')
    if absent:
        raise ValueError(
            f'{source} does not fit the model in {len(absent)} weights: set arch and num_classes as they were in '
            f'training.\n  ' + '\n  '.join(absent)
        )
