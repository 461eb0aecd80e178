"""Adapters in PEFT's folder format: written, read, and loaded beside each other under names."""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import (
    KEY,
    UNKNOWN_BASE,
    check_adapted,
    check_note,
    check_same_base,
    check_types,
    fill_from_model,
)
from mmseg_eomt.adapters.config import (
    as_values,
    config_for,
    digest_of,
    peft_errors,
    read_config,
)
from mmseg_eomt.adapters.initial import exported_config, exported_weights
from mmseg_eomt.adapters.inject import sync_new_layers, unchanged_on_error
from mmseg_eomt.adapters.names import (
    PREFIX,
    adapter_names,
    configs_of,
    names_in_peft,
    peft_names,
    plain_name,
    trained_modules,
    tuner_layers,
)
from mmseg_eomt.adapters.separate_qkv import is_separate
from mmseg_eomt.adapters.split_folder import join, separate
from mmseg_eomt.adapters.starts import changes_base, draws_base_change, trains_biases
from mmseg_eomt.models.arch import arch_of
from mmseg_eomt.weights.arch import check_noted, noted_arch
from mmseg_eomt.weights.checkpoint_io import check_values, read_file, read_safetensors, write_safetensors
from mmseg_eomt.whole import is_unfinished, whole_folder

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG, WEIGHTS, OLD_WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin'
HEADER, DIGEST = 'mmseg_eomt', 'config_digest'  # in the metadata of the weights, and in what is noted there


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
        base: What is known of the base weights (:func:`~.base_weights.describe_base`); written into the file's header.
        meta: Further plain values for the header, such as ``dataset_meta``.
        name: Which of the model's adapters. Default: ``'default'``.

    Raises:
        ValueError: If the model has no such adapter, or weights that the folder would lose (see :func:`check_exportable`),
            or if the folder is there and no adapter's.
    """
    check_exportable(model, base, name)
    from mmseg_eomt.adapters.split_qkv import split_layers

    folder = Path(folder).resolve()  # behind a link, which stays
    if folder.exists() and not (folder.is_dir() and (_is_adapters(folder) or not any(folder.iterdir()))):
        raise ValueError(
            f'{folder} is there already, and is no folder of an adapter, which would be replaced: name another.'
        )
    names, whole = peft_names(model, name), trained_modules(model)
    weights = model.state_dict() if state_dict is None else state_dict
    weights, config = exported_weights(model, weights, name), exported_config(configs_of(model)[name])
    tensors = {new: weights[old].detach().clone() for old, new in names.items()}
    config.modules_to_save = whole or config.modules_to_save
    config.inference_mode = True

    values = as_values(config)
    known = {**(meta or {}), 'base': base or UNKNOWN_BASE}
    if 'split_qkv' in values:
        known['peft'] = {key: value for key, value in values.items() if key != 'modules_to_save'}
        tensors, values = separate(tensors, values, split_layers(model, name))
    known[DIGEST] = digest_of(values)
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
    adapters = list(configs_of(model))
    if name not in adapters or not tuner_layers(model):
        raise ValueError(
            f"PEFT's format is for adapters, and the model has no {name!r} but {adapters}: keep its checkpoint."
        )
    if draws_base_change(as_values(configs_of(model)[name])):
        raise ValueError(
            "PEFT would draw these adapters' change of the base anew: only 'pissa' and 'olora' can be exported."
        )
    exported_config(configs_of(model)[name])
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


def read_folder(folder: str | Path, joined: bool = True) -> dict[str, Any]:
    """A folder as a checkpoint: ``state_dict`` under PEFT's names, and ``meta`` with the note of the adapter.

    Args:
        folder: In PEFT's format.
        joined: Whether adapters of a separated model's queries, keys and values are read as those of a fused one.

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
    own = header.pop('peft', None)
    if joined:
        weights, values = join(weights, values, str(folder))
        values = values if own is None else own
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
    checkpoint = read_folder(folder, joined=not is_separate(model))
    check_noted(noted_arch(checkpoint), arch_of(model), source)
    given, weights = checkpoint['meta'][KEY], checkpoint['state_dict']
    present = configs_of(model)
    if any(changes_base(as_values(config)) for config in present.values()) or (present and changes_base(given['peft'])):
        raise ValueError(
            f'{source}: adapters that change the base (PiSSA and the like) go beside no others: load one on a plain model.'
        )
    others = [as_values(config) for other, config in present.items() if other != name]
    if others and any(map(trains_biases, [*others, given['peft']])):
        raise ValueError(
            f'{source}: adapters with biases of the base that were trained (bias) go beside no others: load one on a plain '
            f'model.'
        )
    check_same_base(model, given, source)
    if name in present:
        if name != 'default':
            raise ValueError(f'The model has an adapter {name!r} already: give that of {source} another name.')
        check_note(given, present[name], source)
        model.load_state_dict(fill_from_model(model, weights, source=source, modules=given['trainable_modules']))
        return
    config: Any = config_for(given['peft'], weights, source)
    config.modules_to_save = given['trainable_modules'] or None
    config.inference_mode = not trainable
    with unchanged_on_error(model, values=changes_base(given['peft']) or getattr(config, 'bias', 'none') != 'none'):
        _put_in(model, config, weights, name, source)


def _put_in(model: nn.Module, config: 'PeftConfig', weights: dict[str, Tensor], name: str, source: str) -> None:
    from peft import inject_adapter_in_model, set_peft_model_state_dict
    from peft.functional import cast_adapter_dtype
    from peft.functional import set_adapter as peft_set_adapter

    from mmseg_eomt.adapters.split_qkv import splitting

    if not tuner_layers(model):
        for parameter in model.parameters():
            parameter.requires_grad = False
    with peft_errors(source), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Already found a `peft_config`')
        with splitting(model, config, name):
            inject_adapter_in_model(config, model, adapter_name=name)
        cast_adapter_dtype(model, name)
        sync_new_layers(model)
    weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    state, names = model.state_dict(), names_in_peft(model, name)
    needed = {old: new for new, old in names.items()}.values()
    check_adapted(weights, {new: state[old] for new, old in names.items()}, source, needed)
    with peft_errors(source):
        set_peft_model_state_dict(model, weights, adapter_name=name)
        peft_set_adapter(model, name, inference_mode=config.inference_mode)


def set_adapter(model: nn.Module, name: str) -> None:
    """Let the model use one of its adapters, with the modules that were trained beside it.

    Raises:
        ValueError: If the model has none of this name.
    """
    names = list(configs_of(model))
    if name not in names:
        raise ValueError(f'The model has no adapter {name!r}, but {names}.')
    from peft.functional import set_adapter as peft_set_adapter

    training = any(model.get_parameter(key).requires_grad for key in adapter_names(model))
    peft_set_adapter(model, name, inference_mode=not training)
