"""The note of its adapters in a checkpoint's ``meta``: what it says, and that it says it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.precision import PRECISIONS

if TYPE_CHECKING:
    from peft import PeftConfig

KEY = 'adapter'  # of the note in a checkpoint's meta
UNKNOWN_BASE: dict[str, Any] = dict(init_cfg={}, load_from=None, fingerprints={})
_INIT_CFG = {'type', 'checkpoint', 'prefix', 'map_location'}  # mmengine's PretrainedInit; more would build other things


def note(
    config: 'PeftConfig | None',
    trainable_modules: Sequence[str],
    base: dict[str, Any],
    complete: bool,
    base_precision: str = 'fp32',
) -> dict[str, Any]:
    """What a checkpoint says of its adapters, in plain values.

    Args:
        config: PEFT's config; None if nothing is targeted.
        trainable_modules: Modules trained beside the adapters.
        base: As :func:`~.base.describe_base` returned.
        complete: Whether the base weights are in the checkpoint.
        base_precision: How they were kept in memory (:mod:`~.precision`).
    """
    return dict(
        peft=as_values(config) if config else None,
        trainable_modules=list(trainable_modules),
        base=base,
        complete=complete,
        base_precision=base_precision,
    )


def check_types(found: Any, source: str) -> None:
    """Make sure that a note from a file is one.

    Args:
        found: What stands in the place of the note.
        source: Of the file, for the message.

    Raises:
        ValueError: If it is none, with the first entry that is not as it should be.
    """
    if not isinstance(found, Mapping):
        raise _wrong(source, f'meta[{KEY!r}]', found, 'a dict')
    for entry in ('peft', 'trainable_modules', 'base', 'complete'):
        if entry not in found:
            raise ValueError(f'{source} has no valid note of its adapters: meta[{KEY!r}] lacks {entry}; {_CURE}')
    peft, precision = found['peft'], found.get('base_precision', 'fp32')
    if peft is not None and not (isinstance(peft, Mapping) and isinstance(peft.get('peft_type'), str)):
        raise _wrong(source, 'peft', peft, "None or PEFT's config as a dict with peft_type")
    if not is_list_of_names(found['trainable_modules']):
        raise _wrong(source, 'trainable_modules', found['trainable_modules'], 'a list of names')
    if not isinstance(found['complete'], bool):
        raise _wrong(source, 'complete', found['complete'], 'True or False')
    if precision not in PRECISIONS:
        raise _wrong(source, 'base_precision', precision, f'one of {PRECISIONS}')
    check_base(found['base'], source)


def check_base(base: Any, source: str) -> None:
    """Make sure that a description of the base from a file is one (:func:`~.base.describe_base`).

    Raises:
        ValueError: If it is none, with the first entry that is not as it should be.
    """
    if not (isinstance(base, Mapping) and base.keys() >= UNKNOWN_BASE.keys()):
        raise _wrong(source, 'base', base, f'a dict with {", ".join(UNKNOWN_BASE)}')
    sources, load_from, fingerprints = (base[name] for name in UNKNOWN_BASE)
    if not (isinstance(sources, Mapping) and all(map(_names_a_checkpoint, sources.items()))):
        raise _wrong(source, 'base.init_cfg', sources, "a dict(type='Pretrained', checkpoint='<path>') by module")
    if not (load_from is None or isinstance(load_from, str)):
        raise _wrong(source, 'base.load_from', load_from, 'None or a path')
    if not isinstance(fingerprints, Mapping):
        raise _wrong(source, 'base.fingerprints', fingerprints, 'a dict of a fingerprint by name')
    for name, noted in fingerprints.items():
        if not (isinstance(name, str) and _is_fingerprint(noted)):
            raise _wrong(source, f'base.fingerprints[{name!r}]', noted, 'shape, digest and two numbers')


def is_list_of_names(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _names_a_checkpoint(item: tuple[Any, Any]) -> bool:
    module, part = item
    return (
        isinstance(module, str)
        and isinstance(part, Mapping)
        and part.keys() <= _INIT_CFG
        and part.get('type') == 'Pretrained'
        and isinstance(part.get('checkpoint'), str)
    )


def _is_fingerprint(value: Any) -> bool:
    try:
        _shape, _digest, *numbers = value.split(':')
        return len([float(number) for number in numbers]) == 2
    except (AttributeError, TypeError, ValueError):
        return False


_CURE = 'use an earlier checkpoint, or copy it again.'


def _wrong(source: str, entry: str, value: Any, expected: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) < 60 else f'{shown[:56]}…'
    return ValueError(f'{source} has no valid note of its adapters: {entry} is {shown}, expected {expected}; {_CURE}')
