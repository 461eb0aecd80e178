"""Put PEFT adapters into a model and freeze the rest."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmseg_eomt.adapters.guard import is_adapter

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)


def lora_config(
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Sequence[str],
    exclude_modules: Sequence[str] = (),
) -> 'PeftConfig':
    """Check the numbers and build PEFT's ``LoraConfig``.

    Args:
        r: Rank, at least 1.
        lora_alpha: Scale; an adapter's output is multiplied by ``lora_alpha / r``. Above 0.
        lora_dropout: Dropout in front of an adapter, from 0 to below 1.
        target_modules: Last parts of the names of the layers to adapt.
        exclude_modules: Last parts of names that are left out all the same.

    Raises:
        ImportError: If PEFT is not installed, with the command that installs it.
        ValueError: If a number is out of range or the targets are no list of names.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(f'LoRA needs PEFT, which could not be imported ({error}): run pip install peft') from error
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f'The rank r must be a whole number of at least 1, got {r!r}.')
    if not isinstance(lora_alpha, (int, float)) or not lora_alpha > 0:
        raise ValueError(f'lora_alpha must be a number above 0, got {lora_alpha!r}.')
    if not isinstance(lora_dropout, (int, float)) or not 0 <= lora_dropout < 1:
        raise ValueError(f'lora_dropout must be from 0 to below 1, got {lora_dropout!r}.')
    if isinstance(target_modules, str) or isinstance(exclude_modules, str):
        raise ValueError(
            f'target_modules and exclude_modules are lists of names, got {target_modules!r} and {exclude_modules!r}.'
        )
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=list(target_modules),
        exclude_modules=list(exclude_modules) or None,
    )


def match_targets(model: nn.Module, config: 'PeftConfig') -> dict[str, list[str]]:
    """Names of the layers that each of the config's targets matches, by PEFT's own rule (the last parts of the name).

    Raises:
        ValueError: If no target matches anything; the message lists what could match.
    """
    excluded = _excluded(model, config)
    modules = {name: module for name, module in model.named_modules() if name not in excluded}
    matches = {t: [name for name in modules if _ends_with(name, t)] for t in sorted(config.target_modules)}
    if matches and not any(matches.values()):
        layers = Counter(name.split('.')[-1] for name, module in modules.items() if isinstance(module, ADAPTABLE) and name)
        choices = ', '.join(f'{name} ({count})' for name, count in sorted(layers.items()) if not name.isdigit())
        raise ValueError(f'target_modules {list(matches)} match no layer of the model. Names that would match: {choices}.')
    return matches


def inject(model: nn.Module, config: 'PeftConfig', trainable_modules: Sequence[str] = ()) -> dict[str, list[str]]:
    """Adapt the layers that the config targets, in place, and freeze everything but adapters and ``trainable_modules``.

    The model keeps its class and names; an adapted layer ``x`` becomes ``x.base_layer`` with its adapters beside it. A
    checkpoint made before can still be loaded: its weights land in the base layers.

    Args:
        model: Any module, its pretrained weights already in.
        config: PEFT's config (see :func:`lora_config`). Without targets only ``trainable_modules`` are trained.
        trainable_modules: Names of modules whose parameters are trained too, such as ``'decode_head.class_head'``.

    Returns:
        The names of the layers that each target matched.

    Raises:
        ValueError: If the targets match nothing, a name of ``trainable_modules`` is not in the model, or nothing would be
            trained.
    """
    parts = {name for name, _ in model.named_modules()}
    unknown = [name for name in trainable_modules if name not in parts]
    if unknown:
        known = sorted(f'{name}.{child}' for name, m in model.named_children() for child, _ in m.named_children())
        raise ValueError(f'trainable_modules {unknown} are not in the model, which has {known}.')
    matches = match_targets(model, config)
    original = {id(parameter) for parameter in model.parameters()}
    if matches:
        from peft import inject_adapter_in_model

        config = copy.copy(config)  # with what is to be left out of this model by its full name
        targets = config.target_modules
        config.exclude_modules = [n for n in _excluded(model, config) if any(_ends_with(n, t) for t in targets)] or None
        inject_adapter_in_model(config, model)
    trained = tuple(f'{name}.' for name in trainable_modules)
    num_trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = id(parameter) not in original or name.startswith(trained)
        num_trained += parameter.requires_grad
    if not num_trained:
        raise ValueError('Nothing is left to train: give target_modules, trainable_modules or both.')
    model.register_load_state_dict_pre_hook(_fit_weights)
    return matches


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters' own parameters."""
    return [name for name, _ in model.named_parameters() if is_adapter(name)]


def _ends_with(name: str, part: str) -> bool:
    """PEFT's rule for matching a module's name."""
    return name == part or name.endswith(f'.{part}')


def _excluded(model: nn.Module, config: 'PeftConfig') -> list[str]:
    """Names that the config leaves out, and layers whose adapters would do nothing.

    PyTorch's own attention reads the weights of its layers and never calls them.
    """
    parts = config.exclude_modules or ()
    names = [name for name, _ in model.named_modules() if any(_ends_with(name, part) for part in parts)]
    attentions = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return names + [f'{name}.{child}' for name, attention in attentions for child, _ in attention.named_children()]


def _fit_weights(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Send a plain checkpoint's weights to the base layers, and refuse adapters that differ from the model's."""
    _check_adapters(model, state_dict, prefix)
    if not any(is_adapter(name) for name in state_dict):  # a plain checkpoint leaves the adapters as they are
        state_dict.update({f'{prefix}{name}': model.get_parameter(name).data for name in adapter_names(model)})
    for name, _module in model.named_modules():
        if not name.endswith('.base_layer'):
            continue
        layer = prefix + name.removesuffix('.base_layer')
        for kind in ('weight', 'bias'):
            if f'{layer}.{kind}' in state_dict:
                state_dict[f'{layer}.base_layer.{kind}'] = state_dict.pop(f'{layer}.{kind}')


def _check_adapters(model: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    given = {n[len(prefix) :]: tuple(v.shape) for n, v in state_dict.items() if n.startswith(prefix) and is_adapter(n)}
    if not given:
        return
    own = {name: tuple(model.get_parameter(name).shape) for name in adapter_names(model)}
    differing = [
        f'{name}: checkpoint {given.get(name, "absent")}, model {own.get(name, "absent")}'
        for name in sorted(given.keys() | own.keys())
        if given.get(name) != own.get(name)
    ]
    if differing:
        raise RuntimeError(
            f"The checkpoint's adapters differ from the model's in {len(differing)} tensors: set r and target_modules as "
            f'they were in training. {"; ".join(differing[:4])}{"; …" if len(differing) > 4 else ""}'
        )
