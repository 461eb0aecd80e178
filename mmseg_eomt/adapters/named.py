"""Several adapters on one base: loaded beside each other under names, and chosen by them."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import check_note, check_same_base, compare, completed
from mmseg_eomt.adapters.config import as_values, changes_base
from mmseg_eomt.adapters.config_file import config_for, peft_errors
from mmseg_eomt.adapters.files import PREFIX, names_in_peft, read_folder
from mmseg_eomt.adapters.inject import settle
from mmseg_eomt.adapters.names import adapter_names, tuner_layers
from mmseg_eomt.adapters.note import KEY
from mmseg_eomt.adapters.undo import unchanged_on_error
from mmseg_eomt.models.arch import arch_of, check_noted, noted_arch

if TYPE_CHECKING:
    from peft import PeftConfig


def load_adapter(model: nn.Module, folder: str | Path, name: str = 'default', trainable: bool = False) -> None:
    """Load an adapter from a folder in PEFT's format, ours or one that PEFT has written.

    Where the model has an adapter of this name, its values are replaced. Otherwise the layers that the folder's config names
    are adapted, beside adapters of other names; :func:`set_adapter` chooses between them, and this one is chosen. After an
    error the model is as it was.

    Args:
        model: A model with its base weights in.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What the adapter is to be called. Default: ``'default'``.
        trainable: Whether it is to be trained on. Default: False.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        RuntimeError: If the adapter's weights are not all there, or do not fit the model.
        ValueError: If it was trained on other base weights, or a file of the folder is not as it was written.
    """
    source = str(folder)
    checkpoint = read_folder(folder)
    check_noted(noted_arch(checkpoint), arch_of(model), source)
    given, weights = checkpoint['meta'][KEY], checkpoint['state_dict']
    present = getattr(model, 'peft_config', {})
    if any(changes_base(as_values(config)) for config in present.values()) or (present and changes_base(given['peft'])):
        raise ValueError(
            f'{source}: adapters that change the base (PiSSA and the like) go beside no others: load one on a plain model.'
        )
    check_same_base(model, given, source)
    if name in present:
        if name != 'default':
            raise ValueError(f'The model has an adapter {name!r} already: give that of {source} another name.')
        check_note(given, present[name], source)
        model.load_state_dict(completed(model, weights, source=source, modules=given['trainable_modules']))
        return
    config = config_for(given['peft'], weights, source)
    config.modules_to_save = given['trainable_modules'] or None
    config.inference_mode = not trainable
    with unchanged_on_error(model, values=changes_base(given['peft']) or getattr(config, 'bias', 'none') != 'none'):
        _put_in(model, config, weights, name, source)


def _put_in(model: nn.Module, config: 'PeftConfig', weights: dict[str, Tensor], name: str, source: str) -> None:
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.functional import cast_adapter_dtype
    from peft.functional import set_adapter as peft_set_adapter

    if not tuner_layers(model):
        for parameter in model.parameters():
            parameter.requires_grad = False
    with peft_errors(source), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Already found a `peft_config`')
        inject_adapter_in_model(config, model, adapter_name=name)
        cast_adapter_dtype(model, name)
        settle(model)
    weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    state, names = model.state_dict(), names_in_peft(model, name)
    needed = {old: new for new, old in names.items()}.values()
    compare(weights, {new: state[old] for new, old in names.items()}, source, needed)
    with peft_errors(source):
        set_peft_model_state_dict(model, weights, adapter_name=name)
        peft_set_adapter(model, name, inference_mode=config.inference_mode)


def set_adapter(model: nn.Module, name: str) -> None:
    """Let the model use one of its adapters, with the modules that were trained beside it.

    Raises:
        ValueError: If the model has none of this name.
    """
    names = list(getattr(model, 'peft_config', {}))
    if name not in names:
        raise ValueError(f'The model has no adapter {name!r}, but {names}.')
    from peft.functional import set_adapter as peft_set_adapter

    training = any(model.get_parameter(key).requires_grad for key in adapter_names(model))
    peft_set_adapter(model, name, inference_mode=not training)
