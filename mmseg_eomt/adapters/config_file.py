"""PEFT's config as it stands in a file: checked before PEFT takes it, which takes text for True and any rank."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmseg_eomt.adapters.config import from_values, import_peft

if TYPE_CHECKING:
    from peft import PeftConfig

_CURE = 'copy or export the adapter again.'
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
                f"{source} has {name}={value!r} in its adapters' config, where PEFT takes {_shown(hint)}: {_CURE}"
            )
    largest = max([LARGEST_RANK, *(side for tensor in weights.values() for side in tensor.shape)])
    for rank in (values.get('r'), *(values.get('rank_pattern') or {}).values()):
        if not (rank is None or (isinstance(rank, int) and rank <= largest)):
            raise ValueError(f"{source} has rank {rank!r} in its adapters' config, and no tensor of such a size: {_CURE}")
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
