"""How adapters start and what trains beside them, as a config says it, and what follows from it for their base."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

# What PEFT's data-driven starts are set by: a field, its class, and our defaults in place of PEFT's.
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = dict(
    eva=('eva_config', 'EvaConfig', dict(rho=1.0)),
    corda=('corda_config', 'CordaConfig', {}),
    lora_ga=('lora_ga_config', 'LoraGAConfig', {}),
)
_SAME_BASE = ('gaussian', 'orthogonal', 'mica', 'eva')
_MADE_AGAIN = ('pissa', 'olora')


def start_of(values: Mapping[str, Any]) -> Any:
    """How the adapters of a described config start: True, or a name such as ``'pissa'``."""
    return values.get('init_lora_weights', values.get('init_weights', True))


def changes_base(values: Mapping[str, Any]) -> bool:
    """Whether the method takes its first values out of the base weights, which it changes: PiSSA, OLoRA and the like."""
    start = start_of(values)
    return isinstance(start, str) and start not in _SAME_BASE


def keeps_start(values: Mapping[str, Any]) -> bool:
    """Whether :func:`changes_base`, and the start is kept beside the adapters (:mod:`~.initial`)."""
    return start_of(values) in ('minor', 'corda', 'lora_ga')


def draws_base_change(values: Mapping[str, Any]) -> bool:
    """Whether :func:`changes_base` comes out otherwise each time: only exact decompositions can be made again."""
    return changes_base(values) and not keeps_start(values) and start_of(values) not in _MADE_AGAIN


def depends_on_base(values: Mapping[str, Any]) -> bool:
    """Whether fresh adapters are computed from the base weights: those of :func:`changes_base`, and DoRA's magnitudes."""
    return bool(values.get('use_dora')) or changes_base(values)


def trains_biases(values: Mapping[str, Any]) -> bool:
    """Whether biases of the base train beside the adapters: PEFT's ``bias='lora_only'`` and the like."""
    return values.get('bias', 'none') != 'none'


def with_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``LoraConfig`` with what their start is set by.

    Raises:
        ValueError: If the start, or a setting of it, cannot be used here.
    """
    start, fields = fields.get('init_lora_weights'), dict(fields)
    if start == 'loftq':
        raise ValueError(
            "init_lora_weights='loftq' starts from the rounding of a base that PEFT quantizes on a CUDA device alone: use "
            "base_precision='4bit' with another start."
        )
    if start in SETTINGS:
        name, class_name, defaults = SETTINGS[start]
        given = fields.get(name) or {}
        if isinstance(given, Mapping):
            cls = getattr(import_module('peft.tuners.lora.config'), class_name, None)
            if cls is None:
                raise ValueError(f'This version of PEFT has no init_lora_weights={start!r}: install a later one.')
            fields[name] = cls(**{**defaults, **given})
        if getattr(fields[name], 'rho', 1) != 1:
            raise ValueError(
                f'eva_config has rho={fields[name].rho}, by which EVA moves ranks between layers and the run would resume '
                f'with others: set rho=1, or ranks of your own in rank_pattern.'
            )
    return fields
