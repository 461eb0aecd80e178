"""Adapters in PEFT's own format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmseg_eomt.adapters.config import as_values, draws_base_change, import_peft
from mmseg_eomt.adapters.config_file import digest_of, read_config
from mmseg_eomt.adapters.names import adapter_names, is_wrapper, plain_name, tuner_layers
from mmseg_eomt.adapters.note import KEY, UNKNOWN_BASE, check_types
from mmseg_eomt.weights.files import read_file, read_safetensors, write_safetensors
from mmseg_eomt.weights.values import check_values
from mmseg_eomt.whole import is_unfinished, whole_folder

CONFIG, WEIGHTS, OLD_WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'
HEADER, DIGEST = 'mmseg_eomt', 'config_digest'  # in the metadata of the weights, and in what is noted there
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
        folder: Where to. An adapter that is there already is replaced as a whole, and other files beside it are kept.
        state_dict: Weights to take in place of the model's, under the model's names.
        base: What is known of the base weights (:func:`~.base.describe_base`); written into the file's header.
        meta: Further plain values for the header, such as ``dataset_meta``.
        name: Which of the model's adapters. Default: ``'default'``.

    Raises:
        ValueError: If the model has no such adapter, or weights that the folder would lose (see :func:`check_exportable`),
            or if the folder is there and no adapter's.
    """
    check_exportable(model, base, name)
    folder = Path(folder).resolve()  # behind a link, which stays
    if folder.exists() and not (folder.is_dir() and (_is_adapters(folder) or not any(folder.iterdir()))):
        raise ValueError(
            f'{folder} is there already, and is no folder of an adapter, which would be replaced: name another.'
        )
    names, whole = peft_names(model, name), whole_modules(model)
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {new: weights[old].detach().clone() for old, new in names.items()}
    config = copy.copy(model.peft_config[name])
    config.modules_to_save = whole or config.modules_to_save
    config.inference_mode = True

    values = as_values(config)
    known = {**(meta or {}), 'base': base or UNKNOWN_BASE, DIGEST: digest_of(values)}
    with whole_folder(folder) as new:
        if folder.exists():
            shutil.copytree(folder, new, symlinks=True, ignore=_own_files, copy_function=_link, dirs_exist_ok=True)
        write_safetensors(new / WEIGHTS, tensors, {HEADER: json.dumps(known, default=list)})
        (new / CONFIG).write_text(f'{json.dumps(values, indent=2, sort_keys=True)}\n', encoding='utf-8')


def _is_adapters(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, WEIGHTS, OLD_WEIGHTS))


def _own_files(folder: str, names: list[str]) -> list[str]:
    """Those of PEFT's format, and what earlier versions left when they were killed; the others are a user's."""
    ours = (CONFIG, WEIGHTS, OLD_WEIGHTS, f'{CONFIG}.new', f'{WEIGHTS}.new')
    return [name for name in names if name in ours]


def _link(source: str, target: str) -> None:
    """A file under a second name, or a copy where there are no links: the first goes with the old folder."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


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
    adapted = set(adapter_names(model))  # frozen too, where they are not to be trained on
    parameters = [(key, parameter) for key, parameter in model.named_parameters() if key not in adapted]
    frozen = [plain_name(key) for key, parameter in parameters if not parameter.requires_grad]
    lost = [key for key in frozen if base and base['fingerprints'] and key not in base['fingerprints']]
    if lost:
        raise ValueError(
            f'{len(lost)} frozen weights, such as {lost[0]}, came from no file, and adapters do not hold them: put their '
            f'modules into trainable_modules, or keep the checkpoint.'
        )


def read_folder(folder: str | Path) -> dict[str, Any]:
    """A folder as a checkpoint: ``state_dict`` under PEFT's names, and ``meta`` with the note of the adapter.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, is damaged or not as PEFT writes it, or belongs to another adapter.
    """
    folder = Path(folder)
    path = next((folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if is_unfinished(folder) or any((folder / f'{name}.new').exists() for name in (CONFIG, WEIGHTS)):
        raise ValueError(f'{folder} was not written to its end: the process was killed. Export the adapter again.')
    if not is_folder(folder) or path is None:
        raise FileNotFoundError(f'{folder} is no adapter in the format of PEFT: it needs {CONFIG} and {WEIGHTS}.')
    values, header = read_config(folder / CONFIG), {}
    if path.name == WEIGHTS:
        weights, metadata = read_safetensors(path)
        header = _read_header(path, metadata.get(HEADER, '{}'))
    else:
        weights = read_file(path)
    check_values(_by_name(weights, path), path)
    if header.pop(DIGEST, digest_of(values)) != digest_of(values):
        raise ValueError(
            f'{folder} holds files of two adapters: {CONFIG} is not the one that {WEIGHTS} was written with. Export the '
            f'adapter again, or copy both from one folder.'
        )
    trainable = values.pop('modules_to_save', None) or []
    noted = dict(peft=values, trainable_modules=trainable, base=header.pop('base', UNKNOWN_BASE), complete=False)
    check_types(noted, str(folder))
    return dict(state_dict=weights, meta={**header, KEY: noted})


def _by_name(weights: Any, path: Path) -> dict[str, Any]:
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__}, not an adapter's weights by name: copy it again.")
    return weights


def _read_header(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'{path} has a header that is damaged ({error}): copy or export the adapter again.') from error


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


def names_in_peft(model: nn.Module, adapter: str = 'default') -> dict[str, str]:
    """PEFT's name, without its prefix, of all that it keeps of an adapter, and the model's name; there may be two of one."""
    peft = import_peft()
    state = model.state_dict()
    by_id = {id(value): name for name, value in state.items()}
    saved = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter, save_embedding_layers=False)
    return {name: by_id[id(value)] for name, value in saved.items() if id(value) in by_id}


def peft_names(model: nn.Module, adapter: str = 'default') -> dict[str, str]:
    """The model's name of everything that is trained, and the name of it in PEFT's format.

    Raises:
        ValueError: If that format has no place for a parameter.
    """
    names = {name: f'{PREFIX}{new}' for new, name in names_in_peft(model, adapter).items()}
    state = model.state_dict()
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
