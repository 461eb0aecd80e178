"""Names of an adapted model's parameters: the adapters' own, the layers' below them, and those in PEFT's format."""

import functools
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mmseg_eomt.adapters.config import import_peft

if TYPE_CHECKING:
    from peft import PeftConfig

# Where PEFT cannot be imported, these are enough to see that a checkpoint has adapters, which cannot be used there.
_WITHOUT_PEFT = ('lora_A', 'lora_B', 'hada_w1_a', 'lokr_w1', 'lokr_w1_a', 'oft_R', 'boft_R', 'ia3_l', 'hra_u')
START_A, START_B = 'adapter_start_A', 'adapter_start_B'  # what LoRA has started from, where its start is kept (initial.py)
# What LoRA's variants add to single layers, and what earlier versions of PEFT had.
_BESIDE_THE_TABLE = (
    'lora_E',
    'lora_diag',
    'lora_monteclora_sampler',
    'lora_velora_embed',
    'lora_arrow',
    'bone_block',
    'oft_r',
    START_A,
    START_B,
)
PREFIX = 'base_model.model.'  # of every name in PEFT's format
_UNWRAPPED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)  # which PEFT cannot save whole
_IN_NO_LAYER = ('SHADOW',)  # a network beside the model: words such as shadow_up may be in any model


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter's parameter, as far as a name can show."""
    return not _parameter_names().isdisjoint(name.split('.'))


@functools.cache
def _parameter_names() -> frozenset[str]:
    """What PEFT's methods call the parameters that they put into a layer, by PEFT's own table."""
    try:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    except Exception:  # not installed, or broken in whatever way: a plain model needs none of it
        return frozenset(_WITHOUT_PEFT)
    layers = [
        getattr(tuner, 'tuner_layer_cls', None)  # prompt methods have none
        for method, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if method not in _IN_NO_LAYER
    ]
    return frozenset(name for layer in layers if layer for name in layer.adapter_layer_names).union(_BESIDE_THE_TABLE)


def configs_of(model: nn.Module) -> 'dict[str, PeftConfig]':
    """PEFT's configs of a model's adapters, by their name; empty for a plain model."""
    return getattr(model, 'peft_config', {})


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that PEFT has put adapters into, PEFT's ``BaseTunerLayer``, by name."""
    tuners = sys.modules.get('peft.tuners.tuners_utils')  # where PEFT was never imported, there are none
    if tuners is None:
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, tuners.BaseTunerLayer)}


def is_wrapper(module: nn.Module) -> bool:
    """Whether PEFT holds a trained copy of a module in it, beside the module itself."""
    return hasattr(module, 'original_module') and hasattr(module, 'modules_to_save')


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters' own parameters."""
    return [
        f'{layer}.{name}' if layer else name
        for layer, module in tuner_layers(model).items()
        for name, _ in module.named_parameters()
        if not name.startswith('base_layer.')
    ]


def adapter_entries(model: nn.Module) -> list[str]:
    """Names in the state dict of all that PEFT has added: parameters, buffers, and trained copies of modules."""
    layers = tuner_layers(model)
    return [
        f'{part}.{name}' if part else name
        for part, module in model.named_modules()
        if part in layers or is_wrapper(module)
        for name in module.state_dict()
        if not name.startswith(('base_layer.', 'original_module.'))
    ]


def belongs_to(name: str, adapter: str) -> bool:
    """Whether a parameter's name is that of an adapter's, or of a module's copy that was trained with it."""
    return f'.{adapter}.' in name or name.endswith(f'.{adapter}')


def plain_name(name: str) -> str:
    """The name that a parameter had before its layer was adapted."""
    return re.sub(r'\.(base_layer|original_module)(?=\.|$)', '', name)


def is_in_modules(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of the modules or inside one."""
    return any(name == module or name.startswith(f'{module}.') for module in modules)


def trained_modules(model: nn.Module) -> list[str]:
    """The largest modules that are fully trained, beside adapters."""
    layers = tuner_layers(model)

    def visit(name: str, module: nn.Module) -> list[str]:
        parameters = list(module.parameters())
        if name in layers or is_wrapper(module) or not parameters:
            return []
        if name and not isinstance(module, _UNWRAPPED) and all(p.requires_grad for p in parameters):
            return [name]
        return [m for child, part in module.named_children() for m in visit(f'{name}.{child}'.lstrip('.'), part)]

    return visit('', model)


def names_in_peft(model: nn.Module, adapter: str = 'default') -> dict[str, str]:
    """PEFT's name, without its prefix, of all that it keeps of an adapter, and the model's name; there may be two of one."""
    peft = import_peft()
    state = {name: value for name, value in model.state_dict().items() if not name.endswith((START_A, START_B))}
    by_id = {id(value): name for name, value in state.items()}
    saved = peft.get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter, save_embedding_layers=False)
    return {name: by_id[id(value)] for name, value in saved.items() if id(value) in by_id}


def peft_names(model: nn.Module, adapter: str = 'default') -> dict[str, str]:
    """The model's name of everything that is trained, and the name of it in PEFT's format.

    Raises:
        ValueError: If that format has no place for a parameter.
    """
    names = {name: f'{PREFIX}{new}' for new, name in names_in_peft(model, adapter).items()}
    state = model.state_dict()
    for module in trained_modules(model):
        alike = [name for name, _ in model.named_modules() if name.endswith(module) and name != module]
        if alike:
            raise ValueError(f'PEFT finds modules by how their names end, and would take {alike[0]} for {module} too.')
        names.update({name: f'{PREFIX}{name}' for name in state if name.startswith(f'{module}.')})
    homeless = [name for name, p in model.named_parameters() if p.requires_grad and name not in names]
    if homeless:
        raise ValueError(f"PEFT's format has no place for {homeless[:3]}: put whole modules into trainable_modules.")
    return names


def from_peft_names(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of PEFT's format under the names of an adapted model."""
    names = {new: old for old, new in peft_names(model).items()}
    return {names.get(name, name.removeprefix(PREFIX)): value for name, value in state_dict.items()}
