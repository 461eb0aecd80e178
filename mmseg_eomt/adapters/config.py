"""PEFT's configs: made from a few numbers, described in plain values, compared."""

import dataclasses
import enum
import hashlib
import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmseg_eomt.adapters.starts import changes_base, with_settings
from mmseg_eomt.requirements import check

if TYPE_CHECKING:
    from peft import PeftConfig

ATTENTION_WEIGHT = 'in_proj_weight'  # of PyTorch's own attention: a parameter, in no layer of its own

# What may differ between a checkpoint and the model that takes it: where adapters sit is seen from their tensors, dropout
# makes no other model, first values only where they change the base (see differences), and the rest is bookkeeping.
_MAY_DIFFER = {
    *('target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'modules_to_save'),
    *('lora_dropout', 'rank_dropout', 'module_dropout', 'init_lora_weights', 'init_weights'),
    *('inference_mode', 'base_model_name_or_path', 'revision', 'auto_mapping', 'peft_version', 'task_type'),
    *('runtime_config', 'loftq_config', 'eva_config', 'corda_config', 'lora_ga_config'),
}


def lora_config(
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Sequence[str],
    exclude_modules: Sequence[str] = (),
    **others: Any,
) -> 'PeftConfig':
    """Check the numbers and build PEFT's ``LoraConfig``.

    Args:
        r: Rank, at least 1.
        lora_alpha: Scale; an adapter's output is multiplied by ``lora_alpha / r``. Above 0.
        lora_dropout: Dropout in front of an adapter, from 0 to below 1.
        target_modules: Last parts of the names of the layers to adapt; ``'in_proj_weight'``, of queries, keys and values in
            PyTorch's own attention, is one of PEFT's ``target_parameters``.
        exclude_modules: Last parts of names that are excluded all the same.
        others: Further fields of ``LoraConfig``, such as ``use_dora=True``; and ``split_qkv=True``, with which layers called
            ``qkv`` have an adapter for queries, one for keys and one for values (:mod:`~.split_qkv`).

    Raises:
        ImportError: If PEFT is not installed, with the command that installs it.
        ValueError: If a number is out of range, the targets are no list of names, the start cannot be used here, or PEFT
            knows no such field.
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f'The rank r must be a whole number of at least 1, got {r!r}.')
    if not isinstance(lora_alpha, (int, float)) or not lora_alpha > 0:
        raise ValueError(f'lora_alpha must be a number above 0, got {lora_alpha!r}.')
    if not isinstance(lora_dropout, (int, float)) or not 0 <= lora_dropout < 1:
        raise ValueError(f'lora_dropout must be from 0 to below 1, got {lora_dropout!r}.')
    numbers = dict(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    parameters = [] if isinstance(target_modules, str) else [t for t in target_modules if _ends_in_attention(t)]
    if parameters:
        target_modules = [target for target in target_modules if target not in parameters]
        others['target_parameters'] = [*(others.get('target_parameters') or ()), *parameters]
    if others.get('target_parameters') and lora_dropout:
        raise ValueError(
            f'{others["target_parameters"]} are weights without a layer of their own, and take no dropout in front of their '
            f'adapters: set lora_dropout=0, got {lora_dropout}.'
        )
    import_peft()
    return peft_config('LoraConfig', target_modules, exclude_modules, **{**numbers, **with_settings(others)})


def _ends_in_attention(target: str) -> bool:
    return target.split('.')[-1] == ATTENTION_WEIGHT


def peft_config(
    config_class: str,
    target_modules: Sequence[str],
    exclude_modules: Sequence[str] = (),
    expression: str | None = None,
    **others: Any,
) -> 'PeftConfig':
    """Build a config of any PEFT method that adapts layers.

    Args:
        config_class: Name of PEFT's config class, such as ``'LoHaConfig'``.
        target_modules: Last parts of the names of the layers to adapt.
        exclude_modules: Last parts of names that are excluded all the same.
        expression: A regular expression for whole names, in place of ``target_modules``. Default: None.
        others: Further fields of the class.

    Raises:
        ImportError: If PEFT is not installed, with the command that installs it.
        ValueError: If PEFT has no such class or field, or refuses a value.
    """
    peft = import_peft()
    if isinstance(target_modules, str) or isinstance(exclude_modules, str):
        raise ValueError(
            f'target_modules and exclude_modules are lists of names, got {target_modules!r} and {exclude_modules!r}.'
        )
    cls = getattr(peft, config_class, None)
    if not (isinstance(cls, type) and issubclass(cls, peft.PeftConfig)):
        raise ValueError(f"PEFT {peft.__version__} has no config class {config_class!r}: type is one like 'LoHaConfig'.")
    if config_class == 'AdaLoraConfig':
        raise ValueError('AdaLoRA moves ranks between layers by a call after each step, which LoRAHook does not make.')
    known = {field.name for field in fields(cls)}
    if 'target_modules' not in known:
        raise ValueError(
            f'{config_class} adapts no layers of a model (it has no target_modules): use LoraConfig or the like.'
        )
    split = others.pop('split_qkv', False)
    unknown = sorted(others.keys() - known)
    if unknown:
        raise ValueError(f"{config_class} has no {unknown}: PEFT {peft.__version__}'s has {sorted(known)}.")
    values = dict(target_modules=expression or list(target_modules), exclude_modules=list(exclude_modules) or None)
    try:
        return _split(split, cls(**{**{name: value for name, value in values.items() if name in known}, **others}))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{config_class} refuses its fields: {error}') from error


def import_peft() -> ModuleType:
    """The package, or an error that says how to install it.

    Raises:
        ImportError: If it cannot be imported or is too old.
    """
    if 'peft' not in sys.modules:
        check('peft')
    try:
        import peft
    except ImportError as error:
        raise ImportError(f'LoRA needs PEFT, which could not be imported ({error}): run pip install peft') from error
    return peft


def as_values(config: 'PeftConfig') -> dict:
    """The config in plain values, for a checkpoint: sets as sorted lists, enumerations by their value."""
    return {name: _plain(value) for name, value in config.to_dict().items()}


def from_values(values: dict) -> 'PeftConfig':
    """The config that :func:`as_values` described, or one read from an ``adapter_config.json``.

    Raises:
        ImportError: If PEFT is missing.
        ValueError: If this version of PEFT does not know the method.
    """
    peft = import_peft()
    values = {name: value for name, value in values.items() if name != 'peft_version'}
    split = values.pop('split_qkv', False)
    try:
        return _split(split, peft.PeftConfig.from_peft_type(**values))
    except KeyError as error:
        raise ValueError(f'PEFT {peft.__version__} does not know the method {error}: install a later version.') from error


def _split(split: bool, config: 'PeftConfig') -> 'PeftConfig':
    """The config, or the same with an adapter each for queries, keys and values (:mod:`~.split_qkv`)."""
    if not isinstance(split, bool):
        raise ValueError(f'split_qkv is True or False, got {split!r}.')
    if not split:
        return config
    from mmseg_eomt.adapters.split_qkv import split_config

    return split_config(config)


def differences(given: dict, own: dict) -> list[str]:
    """Fields of two described configs whose difference would make another model, as ``name: given, own``."""
    given, own = ({'split_qkv': False, **values} for values in (given, own))  # which PEFT's configs do not say
    names = sorted((given.keys() & own.keys()) - _MAY_DIFFER)
    if changes_base(given) or changes_base(own):
        names += [name for name in ('init_lora_weights', 'init_weights') if name in given]
    return [f'{name}: {given[name]!r}, here {own.get(name)!r}' for name in names if given[name] != own.get(name)]


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


_AGAIN = 'copy or export the adapter again.'
LARGEST_RANK = 1024  # beyond which a rank must be seen in the tensors: PEFT would make room for any


def read_config(path: Path) -> dict[str, Any]:
    """The values of an ``adapter_config.json``.

    Raises:
        ValueError: If the file is no JSON of a config.
    """
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON ({error}): is it cut short? Copy or export the adapter again.') from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not the fields of PEFT's config: copy it again.")
    if not isinstance(values.get('peft_type'), str):
        raise ValueError(f"{path} names no method in peft_type, got {values.get('peft_type')!r}: is it PEFT's?")
    return values


def digest_of(values: Mapping[str, Any]) -> str:
    """A digest of a config's values, whatever the file's line ends and order are."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def config_for(values: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> 'PeftConfig':
    """The config that a file describes.

    Args:
        values: Its fields.
        weights: The adapters that come with it.
        source: The file, for messages.

    Raises:
        ImportError: If PEFT is missing.
        ValueError: If this version of PEFT does not know the method, a field is of another type than PEFT's, or a rank is
            beyond all sizes.
    """
    peft = import_peft()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(values['peft_type'])
    if config_class is None:
        raise ValueError(
            f'{source} has adapters of the method {values["peft_type"]!r}, which PEFT {peft.__version__} does not know: '
            f'install a later version.'
        )
    for name, value in values.items():
        hint = _hints(config_class).get(name, Any)
        if not (_fits(value, hint) or value == getattr(config_class, name, ...)):
            raise ValueError(
                f"{source} has {name}={value!r} in its adapters' config, where PEFT takes {_shown(hint)}: {_AGAIN}"
            )
    largest = max([LARGEST_RANK, *(side for tensor in weights.values() for side in tensor.shape)])
    for rank in (values.get('r'), *(values.get('rank_pattern') or {}).values()):
        if not (rank is None or (isinstance(rank, int) and rank <= largest)):
            raise ValueError(f"{source} has rank {rank!r} in its adapters' config, and no tensor of such a size: {_AGAIN}")
    with peft_errors(source):
        return from_values(dict(values))


@contextmanager
def peft_errors(source: str) -> Iterator[None]:
    """Name the file in what PEFT, or whatever damaged values lead to, says of its adapters.

    Raises:
        ValueError: In place of any error but those of the installation.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'The adapters of {source} cannot be put into the model: {told[0]}') from error


def _hints(config_class: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(config_class)
    except (NameError, TypeError):  # what a hint names may not be installed
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON can be what a type hint says."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is typing.Literal:  # PEFT's hints describe some of the texts, such as 'pissa_niter_[number of iters]'
        return type(value) in map(type, parts)
    if kind in (int, float):  # lora_alpha is called whole, and need not be
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (list, set, tuple):
        return isinstance(value, (list, set, tuple)) and all(_fits(item, parts[0]) for item in value if parts)
    if kind is types.NoneType:
        return value is None
    if dataclasses.is_dataclass(kind):
        return (
            isinstance(value, Mapping) and bool(value) and value.keys() <= {field.name for field in dataclasses.fields(kind)}
        )
    return isinstance(value, kind) if kind in (bool, str, dict) else True


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace('typing.', '')
