"""Several adapters of one base, read from their folders and mixed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg.apis import init_model
from mmseg.models import BaseSegmentor

from mmseg_eomt.adapters import load_adapter, merge
from mmseg_eomt.adapters.base_weights import restore_base, watch_loading
from mmseg_eomt.adapters.checkpoint import KEY, base_names
from mmseg_eomt.adapters.names import is_in_modules
from mmseg_eomt.adapters.peft_folder import is_folder, read_folder


def read_factors(given: Sequence[str]) -> dict[str, float]:
    """Folders and their factors, of arguments such as ``adapters/dusk=0.5``; empty for a single checkpoint without one.

    Raises:
        ValueError: If one of several has no factor, a folder is named twice or is none of an adapter.
    """
    if len(given) == 1 and (Path(given[0]).exists() or _factor(given[0]) is None):
        return {}
    factors = {}
    for text in given:
        folder, factor = text.rpartition('=')[0], _factor(text)
        if factor is None:
            raise ValueError(f'Several adapters are given as FOLDER=FACTOR, such as adapters/dusk=0.5; got {text!r}.')
        if folder in factors:
            raise ValueError(f'{folder} is named twice: add up its factors.')
        if not is_folder(folder):
            raise ValueError(
                f'{folder} is no folder of an adapter, which a merge with factors takes: write one with adapter.py export.'
            )
        factors[folder] = factor
    return factors


def _factor(text: str) -> float | None:
    try:
        factor = float(text.rpartition('=')[2]) if '=' in text else math.nan
    except ValueError:
        return None
    return factor if math.isfinite(factor) else None


def mix(config: str, factors: Mapping[str, float], **options: Any) -> tuple[BaseSegmentor, dict[str, Any]]:
    """A plain model with several adapters merged into it.

    Args:
        config: Of the model.
        factors: Folders in PEFT's format, with a factor each.
        options: ``method``, ``density`` and ``seed`` of :func:`~mmseg_eomt.adapters.merge.merge`.

    Returns:
        The model, and what the first folder notes beside its adapter.

    Raises:
        ValueError: If the adapters are of different bases, or cannot be mixed.
    """
    first = next(iter(factors))
    read = {folder: read_folder(folder) for folder in factors}
    model = init_model(config, device='cpu')
    with watch_loading(model) as loaded:
        restore_base(model, read[first]['meta'][KEY]['base'], base_names(read[first]['state_dict']), first)
    names = {folder: f'adapter_{i}' for i, folder in enumerate(factors)}
    modules = {name for checkpoint in read.values() for name in checkpoint['meta'][KEY]['trainable_modules']}
    random = [n for n, _ in model.named_parameters() if is_in_modules(n, modules) and n not in loaded]
    averaged = options['method'] == 'linear' and math.isclose(sum(factors.values()), 1)
    if random and not averaged:
        raise ValueError(
            f'{len(random)} weights that were fully trained, such as {random[0]}, are in no file of the base, so that their '
            f'changes are not known: only factors that sum to 1, without method, can mix them.'
        )
    for folder, name in names.items():
        load_adapter(model, folder, name)
    merge(model, {names[folder]: factor for folder, factor in factors.items()}, **options)
    return model, {key: value for key, value in read[first]['meta'].items() if key not in (KEY, 'iter', 'epoch')}
