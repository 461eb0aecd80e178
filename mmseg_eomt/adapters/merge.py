"""Adapters into the weights: a plain model again."""

from typing import Any

from torch import nn

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.names import configs_of, trained_modules, tuner_layers
from mmseg_eomt.adapters.precision import full_precision, quantized_layers
from mmseg_eomt.adapters.starts import depends_on_base

LINEAR_METHODS = ('LORA', 'LOHA', 'LOKR')  # whose change of a weight can be scaled and added to another's


def merge(model: nn.Module, weights: dict[str, float] | None = None) -> None:
    """Add the adapters to the weights of their layers, in place; the model is a plain one afterwards, without PEFT.

    Args:
        model: An adapted model.
        weights: A factor for each adapter that is to be mixed in, by name: every weight becomes the base's plus the sum of
            the adapters' changes times their factors, also in modules that were fully trained. Default: the active adapter
            as it is.

    Raises:
        ValueError: If the model has no adapters, or their method cannot be merged.
    """
    layers = tuner_layers(model)
    if not layers:
        raise ValueError('The model has no adapters to merge.')
    if quantized_layers(model):
        raise ValueError('A base of 8 or 4 bits is not merged: load the adapters on the whole base, and merge that.')
    if weights is None:
        _merge_active(layers)
    else:
        _check_weighted(model, weights)
        for layer in layers.values():
            _add_weighted(layer, weights)
    for name, layer in reversed(layers.items()):  # those inside others first
        _replace(model, name, layer.get_base_layer())
    _unwrap_modules(model, weights)
    model.__dict__.pop('peft_config', None)


def _merge_active(layers: dict[str, Any]) -> None:
    done: list[Any] = []
    for name, layer in layers.items():
        full_precision(layer)
        try:
            layer.merge(safe_merge=True)
        except (NotImplementedError, ValueError, AttributeError, RuntimeError) as error:
            for other in done:
                other.unmerge()
            raise ValueError(f'{type(layer).__name__} at {name} cannot be merged: {error}') from error
        done.append(layer)


def _check_weighted(model: nn.Module, weights: dict[str, float]) -> None:
    configs = configs_of(model)
    unknown = [name for name in weights if name not in configs]
    if unknown:
        raise ValueError(f'The model has no adapters {unknown}, but {list(configs)}.')
    if trained_modules(model):
        raise ValueError(
            'Modules of the model were trained in place, so that their base is not here to mix from: load each adapter from '
            'its folder with load_adapter.'
        )
    for name in weights:
        config = configs[name]
        method = getattr(config.peft_type, 'value', config.peft_type)
        values = as_values(config)
        if method not in LINEAR_METHODS or depends_on_base(values) or values.get('lora_bias'):
            raise ValueError(
                f'Adapter {name!r} cannot be weighted: its method ({method}) changes more than a sum. '
                f'Without weights, merge takes it whole.'
            )


def _add_weighted(layer: Any, weights: dict[str, float]) -> None:
    full_precision(layer)
    weight = layer.get_param() if hasattr(layer, 'get_param') else layer.get_base_layer().weight
    changes = [(layer.get_delta_weight(name), factor) for name, factor in weights.items() if name in layer.scaling]
    for change, factor in changes:
        weight.data += factor * change.to(weight.dtype)


def _unwrap_modules(model: nn.Module, weights: dict[str, float] | None) -> None:
    from peft.utils.other import ModulesToSaveWrapper

    for name, wrapper in [(n, m) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]:
        module, copies = wrapper.original_module, wrapper.modules_to_save
        if weights is None:
            active = wrapper.active_adapters[0]
            module = copies[active] if active in copies else module  # noqa: SIM401  ModuleDict has no get
        else:
            base = {key: value.clone() for key, value in module.state_dict().items()}
            mixed = {key: value.clone() for key, value in base.items()}
            for adapter, factor in weights.items():
                for key, value in copies[adapter].state_dict().items() if adapter in copies else ():
                    if value.is_floating_point():
                        mixed[key] += factor * (value - base[key])
            module.load_state_dict(mixed)
        _replace(model, name, module)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
