"""What an adapted model calls its parameters: the adapters' own, and those of the layers below them."""

import functools
import re
import sys
from collections.abc import Iterable

from torch import nn

# Where PEFT cannot be imported, these are enough to see that a checkpoint has adapters, which cannot be used there.
_WITHOUT_PEFT = ('lora_A', 'lora_B', 'hada_w1_a', 'lokr_w1', 'lokr_w1_a', 'oft_R', 'boft_R', 'ia3_l', 'hra_u')
# What LoRA's variants add to single layers, and what earlier versions of PEFT had.
_BESIDE_THE_TABLE = (
    'lora_E',
    'lora_diag',
    'lora_monteclora_sampler',
    'lora_velora_embed',
    'lora_arrow',
    'bone_block',
    'oft_r',
)
_IN_NO_LAYER = ('SHADOW',)  # a network beside the model: words such as shadow_up may be in any model


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter's parameter, as far as a name can tell."""
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


def tuner_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PEFT has put adapters into, by name."""
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


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of the modules or inside one."""
    return any(name == module or name.startswith(f'{module}.') for module in modules)
