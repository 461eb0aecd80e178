"""The weights below the adapters: where they came from, what they were, and how they are found again."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from mmseg_eomt.adapters.names import is_adapter, plain_name


@contextmanager
def watch_loading(model: nn.Module) -> Iterator[set[str]]:
    """Note which parameters are loaded from a state dict while the context is open; their names are in the yielded set.

    What was not loaded has random weights, which no file gives back.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    loaded: set[str] = set()

    def note(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            given = state_dict.get(f'{prefix}{name}')
            if given is not None and given.shape == parameter.shape:
                loaded.add(names[id(parameter)])

    handles = [module.register_load_state_dict_pre_hook(note) for module in model.modules()]
    try:
        yield loaded
    finally:
        for handle in handles:
            handle.remove()


def pretrained_sources(model: nn.Module) -> dict[str, str]:
    """The checkpoints that ``init_cfg`` names, by the module that loads it; the model itself is ``''``."""
    sources = {}
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None)
        for part in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
            if part.get('type') in ('Pretrained', PretrainedInit):
                sources[name] = part['checkpoint']
    return sources


def fingerprint(value: Tensor) -> str:
    """Shape and digest of a tensor's bytes, such as ``'32x3x16x16:5f2a09c17be4d361'``."""
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f'{"x".join(map(str, value.shape))}:{hashlib.blake2b(data, digest_size=8).hexdigest()}'


def describe_base(model: nn.Module, names: Iterable[str], load_from: str | None) -> dict[str, Any]:
    """What a checkpoint notes of the weights that it leaves out.

    Args:
        model: The model before it is adapted.
        names: The parameters that can be loaded again.
        load_from: The checkpoint that was loaded over ``init_cfg``'s, if any.

    Returns:
        ``init_cfg`` (as :func:`pretrained_sources`), ``load_from`` and ``fingerprints`` by parameter.
    """
    parameters = dict(model.named_parameters())
    return dict(
        init_cfg=pretrained_sources(model),
        load_from=load_from,
        fingerprints={name: fingerprint(parameters[name]) for name in sorted(names)},
    )


def differing(parameters: dict[str, Tensor], base: dict[str, Any]) -> Iterator[str]:
    """Parameters, under a plain model's names, that are not those of the description.

    A position embedding of another length passes: another size of images asks for it.
    """
    for name, noted in base['fingerprints'].items():
        if name not in parameters:
            yield f'{name}: absent'
            continue
        shape = 'x'.join(map(str, parameters[name].shape))
        if name.endswith('pos_embed') and noted.split(':')[0] != shape:
            continue
        given = fingerprint(parameters[name])
        if given != noted:
            yield f'{name}: {given}, in training {noted}'


def restore_base(model: nn.Module, base: dict[str, Any]) -> None:
    """Bring a plain model's weights to those that adapters were trained on.

    They are left alone if they are known to be the same already. Otherwise ``init_cfg`` is carried out, the model's own
    where it has one and the noted one elsewhere, and then the noted ``load_from``, unless the model itself has an
    ``init_cfg``.

    Args:
        model: A segmentor without adapters.
        base: As :func:`describe_base` returned.

    Raises:
        OSError: If a noted file is not there, with what to set.
        ValueError: If no base is named anywhere, or the weights that were found are not the same, with what differs.
    """
    parameters = dict(model.named_parameters())
    if base['fingerprints'] and next(differing(parameters, base), None) is None:
        return
    own = pretrained_sources(model)
    if not (own or base['init_cfg'] or base['load_from']):
        raise ValueError(
            'The adapters come without a word of the base that they were trained on, and the model names none: set '
            "model.init_cfg=dict(type='Pretrained', checkpoint='<the base>'), or load it and then use load_adapter."
        )
    modules = dict(model.named_modules())
    for name, checkpoint in base['init_cfg'].items():
        module = modules.get(name)
        if name not in own and getattr(module, 'init_cfg', True) is None:
            module.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    sources = pretrained_sources(model)
    model.init_weights()
    if base['load_from'] and '' not in sources:
        load_base(model, base['load_from'])
        sources['load_from'] = base['load_from']
    wrong = list(differing(parameters, base))
    if wrong:
        found = ', '.join(f'{name or "the model"}: {checkpoint}' for name, checkpoint in sources.items()) or 'no checkpoint'
        raise ValueError(
            f'The adapters were trained on another base: {len(wrong)} of {len(base["fingerprints"])} of its weights differ '
            f'({"; ".join(wrong[:2])}). Found were {found}; in training it was {_told(base)}. Set init_cfg as in training.'
        )


def load_base(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint's base weights into a plain model; adapters that are in it are left out.

    Raises:
        OSError: If it is not there.
    """
    try:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{checkpoint}, the base that the adapters were trained on, is not there. Where it has moved, set '
            f"model.init_cfg=dict(type='Pretrained', checkpoint='<its new path>')."
        ) from error
    weights = {name.removeprefix('module.'): v for name, v in loaded.get('state_dict', loaded).items()}
    load_state_dict(model, {plain_name(name): value for name, value in weights.items() if not is_adapter(name)})
    print_log(f'Base weights: {checkpoint}', logger='current')


def _told(base: dict[str, Any]) -> str:
    sources = [*base['init_cfg'].values(), *([base['load_from']] if base['load_from'] else [])]
    return ', then '.join(dict.fromkeys(sources)) or 'not loaded from any file'
