"""What an adapted model calls its parameters: the adapters' own, and those of the layers below them."""

import re
import sys
from collections.abc import Iterable

from torch import nn

# How the parameters of PEFT's methods begin; a model tells by its layers, a file only by names.
_METHODS = 'lora|hada|lokr|oft|boft|ia3|hra|vera|road|shira|fourierft|c3a|miss|bone|delora|randlora|ln_tuning|waveft|gralora'
_ADAPTER = re.compile(rf'\.(?:{_METHODS})_')


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter's parameter, as far as a name can tell."""
    return _ADAPTER.search(name) is not None


def tuner_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PEFT has put adapters into, by name."""
    tuners = sys.modules.get('peft.tuners.tuners_utils')  # where PEFT was never imported, there are none
    if tuners is None:
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, tuners.BaseTunerLayer)}


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters' own parameters."""
    return [
        f'{layer}.{name}' if layer else name
        for layer, module in tuner_layers(model).items()
        for name, _ in module.named_parameters()
        if not name.startswith('base_layer.')
    ]


def plain_name(name: str) -> str:
    """The name that a parameter had before its layer was adapted."""
    return re.sub(r'\.(base_layer|original_module)(?=\.|$)', '', name)


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of the modules or inside one."""
    return any(name == module or name.startswith(f'{module}.') for module in modules)
