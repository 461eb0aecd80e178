"""Adapters into the weights: a plain model again."""

from typing import Any

from torch import nn

from mmseg_eomt.adapters.combine import Combine, check_method, combining
from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.names import configs_of, trained_modules, tuner_layers
from mmseg_eomt.adapters.precision import full_precision, quantized_layers
from mmseg_eomt.adapters.starts import depends_on_base, trains_biases

LINEAR_METHODS = ('LORA', 'LOHA', 'LOKR')  # whose change of a weight can be scaled and added to another's


def merge(
    model: nn.Module,
    weights: dict[str, float] | None = None,
    method: str = 'linear',
    density: float | None = None,
    seed: int = 0,
) -> None:
    """Add the adapters to the weights of their layers, in place; the model is a plain one afterwards, without PEFT.

    With ``method='ties'`` and the like, PEFT's function of that name (:mod:`peft.utils.merge_utils`) combines the adapters'
    changes of each weight. PEFT's own ``add_weighted_adapter`` applies them to A and B, whose product is another change, or,
    as ``'ties_svd'``, to the changes, of which it keeps a low rank; here the changes are added whole.

    Args:
        model: An adapted model.
        weights: A factor for each adapter that is to be mixed in, by name: every weight becomes the base's plus the sum of
            the adapters' changes times their factors, also in modules that were fully trained (by the same ``method``).
            Default: the active adapter as it is.
        method: How changes are combined: ``'linear'``; ``'ties'``, ``'magnitude_prune'``, which keep the largest values,
            TIES the mean of those of the elected sign; ``'dare_linear'``, ``'dare_ties'``, which keep random ones, scaled
            up. Default: ``'linear'``.
        density: Fraction of each change's values that the other methods keep, above 0 and up to 1. Default: None.
        seed: Of the random values that DARE keeps. Default: 0.

    Raises:
        ValueError: If the model has no adapters, their method cannot be merged, or ``method`` and ``density`` do not fit.

    Source: TIES (Yadav et al., NeurIPS 2023); DARE (Yu et al., ICML 2024).
    """
    layers = tuner_layers(model)
    if not layers:
        raise ValueError('The model has no adapters to merge.')
    if quantized_layers(model):
        raise ValueError('A base of 8 or 4 bits is not merged: load the adapters on the whole base, and merge that.')
    check_method(method, density)
    if weights is None and method != 'linear':
        raise ValueError(f'method={method!r} combines adapters: give weights, a factor for each.')
    with combining(method, density, seed) as combine:
        if weights is None:
            _merge_active(layers)
        else:
            _check_weighted(model, weights)
            for layer in layers.values():
                _add_weighted(layer, weights, combine)
        for name, layer in reversed(layers.items()):  # those inside others first
            _replace(model, name, layer.get_base_layer())
        _unwrap_modules(model, weights, combine)
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
        more = depends_on_base(values) or values.get('lora_bias') or trains_biases(values)
        if method not in LINEAR_METHODS or more:
            raise ValueError(
                f'Adapter {name!r} cannot be weighted: its method ({method}) changes more than a sum. '
                f'Without weights, merge takes it whole.'
            )


def _add_weighted(layer: Any, weights: dict[str, float], combine: Combine) -> None:
    full_precision(layer)
    weight = layer.get_param() if hasattr(layer, 'get_param') else layer.get_base_layer().weight
    names = [name for name in weights if name in layer.scaling]
    for change in combine([layer.get_delta_weight(name).data for name in names], [weights[name] for name in names]):
        weight.data += change.to(weight.dtype)


def _unwrap_modules(model: nn.Module, weights: dict[str, float] | None, combine: Combine) -> None:
    from peft.utils.other import ModulesToSaveWrapper

    for name, wrapper in [(n, m) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)]:
        module, copies = wrapper.original_module, wrapper.modules_to_save
        if weights is None:
            active = wrapper.active_adapters[0]
            module = copies[active] if active in copies else module  # noqa: SIM401  ModuleDict has no get
        else:
            trained = {adapter: copies[adapter].state_dict() for adapter in weights if adapter in copies}
            factors = [weights[adapter] for adapter in trained]
            mixed = {key: value.clone() for key, value in module.state_dict().items()}
            for key, value in mixed.items():
                if value.is_floating_point():
                    for change in combine([state[key] - value for state in trained.values()], factors):
                        value += change
            module.load_state_dict(mixed)
        _replace(model, name, module)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
