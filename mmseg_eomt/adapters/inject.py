"""Put PEFT adapters into a model and freeze the rest."""

import copy
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.initial import starting
from mmseg_eomt.adapters.names import (
    adapter_names,
    belongs_to,
    configs_of,
    is_adapter,
    is_in_modules,
    is_wrapper,
    tuner_layers,
)
from mmseg_eomt.adapters.starts import changes_base, depends_on_base
from mmseg_eomt.weights.compare import compare, refuse

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)


def match_targets(model: nn.Module, config: 'PeftConfig', trainable_modules: Sequence[str] = ()) -> dict[str, list[str]]:
    """Names of the layers that each of the config's targets matches, by PEFT's own rule.

    Args:
        model: Any module.
        config: PEFT's config (see :func:`~.config.lora_config`).
        trainable_modules: Modules that are fully trained, in which no layer is adapted.

    Returns:
        A list for each target; where the config's target is a regular expression, one list under it.

    Raises:
        ValueError: If no target matches anything; the message lists what could match.
    """
    in_attention = _matched_parameters(model, config, trainable_modules)
    config = fitted_config(model, config, trainable_modules)
    targets = getattr(config, 'target_modules', None) or []
    expression = isinstance(targets, str)
    matches: dict[str, list[str]] = {target: [] for target in ([targets] if isinstance(targets, str) else sorted(targets))}
    matches.update(in_attention)
    if not matches:
        return matches
    from peft.tuners.tuners_utils import check_target_module_exists

    for name, module in model.named_modules():
        if check_target_module_exists(config, name):
            if isinstance(module, nn.MultiheadAttention):
                raise ValueError(
                    f"{name} is PyTorch's own attention, which PEFT would adapt wrongly, its output twice: set "
                    f'in_proj_weight in target_modules in place of it.'
                )
            for target in matches.keys() - in_attention.keys():
                if expression or _ends_with(name, target):
                    matches[target].append(name)
    if not any(matches.values()):
        left_out = set(getattr(config, 'exclude_modules', None) or ())
        layers = Counter(
            name.split('.')[-1]
            for name, module in model.named_modules()
            if isinstance(module, ADAPTABLE) and name and name not in left_out
        )
        layers['in_proj_weight'] = sum(isinstance(module, nn.MultiheadAttention) for module in model.modules())
        choices = ', '.join(f'{name} ({n})' for name, n in sorted(layers.items()) if n and not name.isdigit())
        raise ValueError(f'target_modules {list(matches)} match no layer of the model. Names that would match: {choices}.')
    return matches


def inject(
    model: nn.Module, config: 'PeftConfig | None', trainable_modules: Sequence[str] = (), fresh: bool = True
) -> dict[str, list[str]]:
    """Adapt the layers that the config targets, in place, and freeze everything but adapters and ``trainable_modules``.

    The model keeps its class and names; an adapted layer ``x`` becomes ``x.base_layer`` with its adapters beside it. A
    checkpoint made before can still be loaded: its weights land in the base layers.

    Args:
        model: Any module, its pretrained weights already in.
        config: PEFT's config (see :func:`~.config.lora_config`). Without targets, or None, only ``trainable_modules`` are
            trained.
        trainable_modules: Names of modules whose parameters are trained too, such as ``'decode_head.class_head'``. The
            config's ``modules_to_save`` are trained in the same way: in place, not in a second copy as PEFT does.
        fresh: Whether the adapters start here. If not, a checkpoint brings their values, and a start that is kept with them
            (:mod:`~.initial`) is not computed. Default: True.

    Returns:
        The names of the layers that each target matched.

    Raises:
        ValueError: If the model has adapters already, the targets match nothing, a name of ``trainable_modules`` is not in
            the model, or nothing would be trained.
    """
    if tuner_layers(model):
        raise ValueError('The model has adapters already: merge them first, or put more beside them with load_adapter.')
    whole = fully_trained_modules(model, config, trainable_modules)
    matches = {} if config is None else match_targets(model, config, whole)
    _refuse_shared(model, matches, config is not None and changes_base(as_values(config)))
    for parameter in model.parameters():
        parameter.requires_grad = False
    if config is not None and matches:
        from peft import inject_adapter_in_model
        from peft.functional import cast_adapter_dtype

        from mmseg_eomt.adapters.split_qkv import splitting

        with warnings.catch_warnings(), starting(model, fitted_config(model, config, whole), fresh) as fitted:
            warnings.filterwarnings('ignore', message='.*merge.*', module='peft')
            with splitting(model, fitted):
                inject_adapter_in_model(fitted, model)
        cast_adapter_dtype(model, 'default')  # fp32 also beside a base of bf16, whose type they have taken
        sync_new_layers(model)
    num_trained = 0
    for name, parameter in model.named_parameters():
        if is_in_modules(name, whole) and parameter.is_floating_point():
            parameter.requires_grad = True
        num_trained += parameter.requires_grad
    if not num_trained:
        raise ValueError('Nothing is left to train: give target_modules, trainable_modules or both.')
    model.register_load_state_dict_pre_hook(_remap_to_base_layers)
    return matches


def sync_new_layers(model: nn.Module) -> None:
    """Put right what PEFT has just added to a model.

    Its parts start in training's mode and take that of what they were added to, and they are used where a weight is read.
    Linear layers with LoRA get a forward pass of less memory.
    """
    from peft.tuners.lora import Linear

    from mmseg_eomt.adapters.attention_lora import adapt_weight_reads
    from mmseg_eomt.adapters.fused_lora import FusedLinear

    adapt_weight_reads(model)
    for layer in tuner_layers(model).values():
        if type(layer) is Linear:
            layer.__class__ = FusedLinear
        layer.train(layer.get_base_layer().training)
    wrappers: list[Any] = [module for module in model.modules() if is_wrapper(module)]
    for wrapper in wrappers:
        wrapper.train(wrapper.original_module.training)


def _refuse_shared(model: nn.Module, matches: dict[str, list[str]], with_weights: bool) -> None:
    """Make sure that no adapted layer, nor its weight if adapters change that, is elsewhere in the model too."""
    names: dict[int, list[str]] = {}
    for named in (model.named_modules, model.named_parameters):
        for name, part in named(remove_duplicate=False):
            names.setdefault(id(part), []).append(name)
    for matched in matches.values():
        for name in matched:
            shared = next(shared for shared in names.values() if name in shared)
            if len(shared) > 1:
                raise ValueError(f'{" and ".join(shared)} are one layer, of which only one would be adapted: leave it out.')
            tied = next((tied for tied in names.values() if with_weights and f'{name}.weight' in tied), [name])
            if len(tied) > 1:
                raise ValueError(
                    f'{" and ".join(tied)} are one weight, which this start of adapters would change for all: leave it out.'
                )


def fully_trained_modules(model: nn.Module, config: 'PeftConfig | None', trainable_modules: Sequence[str]) -> list[str]:
    """Full names of ``trainable_modules`` and of the config's ``modules_to_save``.

    Raises:
        ValueError: If one of them is not in the model.
    """
    return find_modules(model, trainable_modules) + modules_to_save(model, config)


def find_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names as they are, once all are found to be modules of the model.

    Raises:
        ValueError: If some are not, with those there are.
    """
    parts = {name for name, _ in model.named_modules()}
    unknown = [name for name in names if name not in parts]
    if unknown:
        known = sorted(f'{name}.{child}' for name, m in model.named_children() for child, _ in m.named_children())
        raise ValueError(f'trainable_modules {unknown} are not in the model, which has {known}.')
    return list(names)


def modules_to_save(model: nn.Module, config: 'PeftConfig | None') -> list[str]:
    """Full names of the modules that the config's ``modules_to_save`` match, by PEFT's rule (the end of the name).

    Raises:
        ValueError: If one of them matches nothing.
    """
    ends = getattr(config, 'modules_to_save', None) or ()
    names = [name for name, _ in model.named_modules()]
    found = {end: [name for name in names if name.endswith(end)] for end in ends}
    missing = [end for end, matched in found.items() if not matched]
    if missing:
        raise ValueError(f'modules_to_save {missing} match no module of the model.')
    return [name for matched in found.values() for name in matched]


def _ends_with(name: str, part: str) -> bool:
    """PEFT's rule for matching a layer's name."""
    return name == part or name.endswith(f'.{part}')


def fitted_config(model: nn.Module, config: 'PeftConfig', whole: Sequence[str]) -> Any:
    """A copy that excludes, by full name, what this model cannot use adapters in.

    Those are the layers in modules that are fully trained, and the layers of PyTorch's own attention, whose weights it reads
    without calling them. The targets stay as they are: PEFT skips ``layers_to_transform`` for full names.
    """
    fitted: Any = copy.copy(config)
    parts = getattr(config, 'exclude_modules', None) or ()
    targets = fitted.target_modules or ()
    in_attention = {
        f'{name}.{child}'
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_children()
    }
    if getattr(fitted, 'target_parameters', None):
        fitted.target_parameters = [n for names in _matched_parameters(model, config, whole).values() for n in names] or None
    if isinstance(parts, str):  # an expression of the user's is left as it is
        return fitted
    fitted.modules_to_save = None
    fitted.exclude_modules = [
        name
        for name, _ in model.named_modules()
        if (isinstance(targets, str) or any(_ends_with(name, target) for target in targets))
        and (name in in_attention or is_in_modules(name, whole) or any(_ends_with(name, part) for part in parts))
    ] or None
    return fitted


def _matched_parameters(model: nn.Module, config: 'PeftConfig', whole: Sequence[str]) -> dict[str, list[str]]:
    """Full names of the parameters that each of the config's ``target_parameters`` matches, outside of ``whole``."""
    names = [name for name, _ in model.named_parameters() if not is_in_modules(name, whole)]
    targets = sorted(getattr(config, 'target_parameters', None) or ())
    return {target: [name for name in names if _ends_with(name, target)] for target in targets}


def _remap_to_base_layers(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Send a plain checkpoint's weights to the base layers, and refuse adapters that differ from the model's."""
    own = adapter_names(model)
    given = [name for name in state_dict if is_adapter(name) or name.removeprefix(prefix) in own]
    if given:
        check_adapters(model, {name.removeprefix(prefix): state_dict[name] for name in given})
    elif own:
        moved = [name for name in state_dict if f'{prefix}{_to_base(model, name.removeprefix(prefix))}' != name]
        if moved and any(depends_on_base(as_values(config)) for config in configs_of(model).values()):
            raise RuntimeError(
                'These adapters (DoRA, PiSSA or the like) were computed from the base weights that the model had: load the '
                'plain checkpoint before they are put in.'
            )
        # a plain checkpoint leaves the adapters as they are
        state_dict.update({f'{prefix}{name}': model.get_parameter(name).data for name in own})
    for name in list(state_dict):
        target = f'{prefix}{_to_base(model, name.removeprefix(prefix))}'
        if name.startswith(prefix) and target != name:
            state_dict[target] = state_dict.pop(name)


def _to_base(model: nn.Module, name: str) -> str:
    """Where a parameter of a plain model sits in the adapted one."""
    module: nn.Module | None = model
    path = []
    for part in name.split('.'):
        while module is not None and part not in {**module._modules, **module._parameters}:
            module = module._modules.get('base_layer')
            path.append('base_layer')
        if module is None:
            return name
        path.append(part)
        module = module._modules.get(part)
    return '.'.join(path)


def check_adapters(model: nn.Module, given: dict[str, Tensor]) -> None:
    """Compare adapters from a file with the model's of the same names.

    Args:
        model: An adapted model.
        given: Adapters' parameters under the model's names.

    Raises:
        RuntimeError: If some are missing, unknown or of another shape, with what was given and what the model has.
    """
    adapters = [adapter for adapter in configs_of(model) if any(belongs_to(name, adapter) for name in given)]
    own = {
        name: model.get_parameter(name)
        for name in adapter_names(model)
        if not adapters or any(belongs_to(name, adapter) for adapter in adapters)
    }
    buffers = {name for name, _ in model.named_buffers()}
    differing = compare(given, own, known=given.keys() - buffers)
    refuse('The checkpoint', differing, 'set r, target_modules and blocks as they were in training', RuntimeError)


_CONTAINERS = (dict, OrderedDict, list, set)  # of modules, parameters, hooks, and of PEFT's settings by adapter


@contextmanager
def unchanged_on_error(model: nn.Module, values: bool = False) -> Iterator[None]:
    """Put a model back if an error leaves the context: its modules, parameters, hooks and what trains.

    Args:
        model: Any module.
        values: Whether the parameters' numbers may be changed as well, and are to be copied for it. Default: False.
    """
    modules = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
    containers = {id(v): (v, v.copy()) for *_, state in modules for v in state.values() if type(v) in _CONTAINERS}
    parameters = [(p, p.requires_grad, p.detach().clone() if values else p.data) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, state in modules:
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(state)
        for container, content in containers.values():
            _refill(container, content)
        for parameter, requires_grad, value in parameters:
            parameter.requires_grad = requires_grad
            parameter.data = value
        raise


def _refill(container: dict[Any, Any] | list[Any] | set[Any], content: Any) -> None:
    """The content of before in the container that was there, which others may hold on to, such as hooks' handles."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
