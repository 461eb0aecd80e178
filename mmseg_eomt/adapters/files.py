"""Adapters in PEFT's own format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""

import copy
import json
import os
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import KEY, UNKNOWN_BASE, check_note, check_same_base, completed
from mmseg_eomt.adapters.config import as_values, changes_base, draws_base_change, from_values, import_peft
from mmseg_eomt.adapters.inject import settle
from mmseg_eomt.adapters.names import adapter_names, belongs_to, is_wrapper, plain_name, tuner_layers
from mmseg_eomt.models.arch import arch_of, check_noted, noted_arch

CONFIG, WEIGHTS, OLD_WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'
PREFIX = 'base_model.model.'  # of every name in PEFT's format
_UNWRAPPED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # which PEFT cannot save whole


def is_folder(path: str | Path) -> bool:
    """Whether this is a folder in PEFT's format."""
    return (Path(path) / CONFIG).is_file()


def save_adapter(
    model: nn.Module,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    base: dict[str, Any] | None = None,
    meta: dict[str, Any] | None = None,
    name: str = 'default',
) -> None:
    """Write what was trained, as PEFT's ``save_pretrained`` does.

    Adapters and the modules that were trained beside them go into one file; the config lists these modules under
    ``modules_to_save``, so that ``peft.PeftModel.from_pretrained(segmentor, folder)`` restores all of it.

    Args:
        model: A model after :func:`~.inject.inject`.
        folder: Where to; made if it is not there, and its two files are replaced.
        state_dict: Weights to take in place of the model's, under the model's names.
        base: What is known of the base weights (:func:`~.base.describe_base`); written into the file's header.
        meta: Further plain values for the header, such as ``dataset_meta``.
        name: Which of the model's adapters. Default: ``'default'``.

    Raises:
        ValueError: If the model has no such adapter, or weights that the folder would lose (see :func:`check_exportable`).
    """
    check_exportable(model, base, name)
    from safetensors.torch import save

    names, whole = peft_names(model, name), whole_modules(model)
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {new: weights[old].detach().cpu().contiguous().clone() for old, new in names.items()}
    config = copy.copy(model.peft_config[name])
    config.modules_to_save = whole or config.modules_to_save
    config.inference_mode = True

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = dict(format='pt', mmseg_eomt=json.dumps(dict(base=base or UNKNOWN_BASE, **(meta or {})), default=list))
    _write(folder / WEIGHTS, save(tensors, metadata=header))
    _write(folder / CONFIG, f'{json.dumps(as_values(config), indent=2, sort_keys=True)}\n'.encode())


def check_exportable(model: nn.Module, base: dict[str, Any] | None = None, name: str = 'default') -> None:
    """Make sure that a folder in PEFT's format would hold all that the base does not.

    Raises:
        ValueError: If the model has no such adapter, trains a parameter that the format has no place for, has frozen weights
            that came from no file, or adapters that a second decomposition of the base would not fit.
    """
    adapters = list(getattr(model, 'peft_config', {}))
    if name not in adapters or not tuner_layers(model):
        raise ValueError(
            f"PEFT's format is for adapters, and the model has no {name!r} but {adapters}: keep its checkpoint."
        )
    if draws_base_change(as_values(model.peft_config[name])):
        raise ValueError(
            "PEFT would draw these adapters' change of the base anew: only 'pissa' and 'olora' can be exported."
        )
    peft_names(model, name)
    frozen = [plain_name(key) for key, parameter in model.named_parameters() if not parameter.requires_grad]
    lost = [key for key in frozen if base and base['fingerprints'] and key not in base['fingerprints']]
    if lost:
        raise ValueError(
            f'{len(lost)} frozen weights, such as {lost[0]}, came from no file, and adapters do not hold them: put their '
            f'modules into trainable_modules, or keep the checkpoint.'
        )


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once: whoever reads it meets the old one or the new, and never half of it."""
    new = path.with_name(f'{path.name}.new')
    new.write_bytes(data)
    os.replace(new, path)


def load_adapter(model: nn.Module, folder: str | Path, name: str = 'default', trainable: bool = False) -> None:
    """Load an adapter from a folder in PEFT's format, ours or one that PEFT has written.

    Where the model has an adapter of this name, its values are replaced. Otherwise the layers that the folder's config names
    are adapted, beside adapters of other names; :func:`set_adapter` chooses between them, and this one is chosen.

    Args:
        model: A model with its base weights in.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: What the adapter is to be called. Default: ``'default'``.
        trainable: Whether it is to be trained on. Default: False.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        RuntimeError: If the adapter does not fit the model.
        ValueError: If it was trained on other base weights.
    """
    checkpoint = read_folder(folder)
    check_noted(noted_arch(checkpoint), arch_of(model), str(folder))
    given, weights = checkpoint['meta'][KEY], checkpoint['state_dict']
    present = getattr(model, 'peft_config', {})
    if any(changes_base(as_values(config)) for config in present.values()) or (present and changes_base(given['peft'])):
        raise ValueError(
            'Adapters that change the base (PiSSA and the like) go beside no others: load one on a plain model.'
        )
    check_same_base(model, given)
    if name in present:
        if name != 'default':
            raise ValueError(f'The model has an adapter {name!r} already: give this one another name.')
        check_note(given, present[name], str(folder))
        model.load_state_dict(completed(model, weights))
        return
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.functional import cast_adapter_dtype, delete_adapter
    from peft.functional import set_adapter as peft_set_adapter

    config = from_values(given['peft'])
    config.modules_to_save = given['trainable_modules'] or None
    config.inference_mode = not trainable
    if not tuner_layers(model):
        for parameter in model.parameters():
            parameter.requires_grad = False
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Already found a `peft_config`')
        inject_adapter_in_model(config, model, adapter_name=name)
    cast_adapter_dtype(model, name)
    settle(model)
    try:
        weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except KeyError as error:
        delete_adapter(model, name)
        raise RuntimeError(f'{folder} lacks the weights of {error}, which its config lists in modules_to_save.') from error
    except RuntimeError:
        delete_adapter(model, name)
        raise
    missing = [key for key in result.missing_keys if belongs_to(key, name)]
    if missing or result.unexpected_keys:
        delete_adapter(model, name)
        raise RuntimeError(
            f'{folder} does not fit the model: missing are {missing[:3]}, unknown {list(result.unexpected_keys)[:3]}.'
        )
    peft_set_adapter(model, name, inference_mode=not trainable)


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


def read_folder(folder: str | Path) -> dict[str, Any]:
    """A folder as a checkpoint: ``state_dict`` under PEFT's names, and ``meta`` with the note of the adapter.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read.
    """
    folder = Path(folder)
    path = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if not is_folder(folder) or path is None:
        raise FileNotFoundError(f'{folder} is no adapter in the format of PEFT: it needs {CONFIG} and {WEIGHTS}.')
    header: dict[str, Any] = {}
    try:
        values = json.loads((folder / CONFIG).read_text())
        if path.name == WEIGHTS:
            from safetensors import safe_open

            with safe_open(path, 'pt') as file:
                header = json.loads((file.metadata() or {}).get('mmseg_eomt', '{}'))
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        else:
            import torch

            weights = torch.load(path, map_location='cpu', weights_only=True)
    except (ValueError, RuntimeError, EOFError) as error:
        raise ValueError(
            f'{folder} cannot be read ({error}): is a file of it cut short? Copy or export it again.'
        ) from error
    except Exception as error:
        if type(error).__name__ != 'SafetensorError':
            raise
        raise ValueError(f'{path} cannot be read ({error}): is it cut short? Copy or export it again.') from error
    trainable = values.pop('modules_to_save', None) or []
    noted = dict(peft=values, trainable_modules=trainable, base=header.pop('base', UNKNOWN_BASE), complete=False)
    return dict(state_dict=weights, meta={**header, KEY: noted})


def whole_modules(model: nn.Module) -> list[str]:
    """The largest modules that are trained whole, beside adapters."""
    layers = tuner_layers(model)

    def visit(name: str, module: nn.Module) -> list[str]:
        parameters = list(module.parameters())
        if name in layers or is_wrapper(module) or not parameters:
            return []
        if name and not isinstance(module, _UNWRAPPED) and all(p.requires_grad for p in parameters):
            return [name]
        return [m for child, part in module.named_children() for m in visit(f'{name}.{child}'.lstrip('.'), part)]

    return visit('', model)


def peft_names(model: nn.Module, adapter: str = 'default') -> dict[str, str]:
    """The model's name of everything that is trained, and the name of it in PEFT's format.

    Raises:
        ValueError: If that format has no place for a parameter.
    """
    peft = import_peft()
    state = model.state_dict()
    by_id = {id(value): name for name, value in state.items()}
    saved = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter, save_embedding_layers=False)
    names = {by_id[id(value)]: f'{PREFIX}{name}' for name, value in saved.items() if id(value) in by_id}
    for module in whole_modules(model):
        alike = [name for name, _ in model.named_modules() if name.endswith(module) and name != module]
        if alike:
            raise ValueError(f'PEFT finds modules by how their names end, and would take {alike[0]} for {module} too.')
        names.update({name: f'{PREFIX}{name}' for name in state if name.startswith(f'{module}.')})
    homeless = [name for name, p in model.named_parameters() if p.requires_grad and name not in names]
    if homeless:
        raise ValueError(f"PEFT's format has no place for {homeless[:3]}: put whole modules into trainable_modules.")
    return names


def from_peft_names(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of PEFT's format under the names of an adapted model."""
    names = {new: old for old, new in peft_names(model).items()}
    return {names.get(name, name.removeprefix(PREFIX)): value for name, value in state_dict.items()}
