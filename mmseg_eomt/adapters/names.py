"""What an adapted model calls its parameters: the adapters' own, and those of the layers below them."""

import re
import sys
from collections.abc import Iterable

from torch import nn

# What PEFT's methods call their parameters; a model tells by its layers, a file only by names.
_METHODS = (
    r'lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|hada_[wt][12]|lokr_[wt][12]|oft_[rR]|boft_[Rs]|ia3_l|hra_u|'
    r'vera_lambda_[bd]|randlora_(?:lambda|gamma)|delora_(?:A|B|lambda)|road_(?:theta|alpha)|fourierft_spectrum|c3a_kernel|'
    r'miss_block|shira_weight|waveft_spectrum|gralora_[AB]|ln_tuning_layers'
)
_ADAPTER = re.compile(rf'\.(?:{_METHODS})(?![a-zA-Z])')


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter's parameter, as far as a name can tell."""
    return _ADAPTER.search(name) is not None


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


def belongs_to(name: str, adapter: str) -> bool:
    """Whether a parameter's name is that of an adapter's, or of a module's copy that was trained with it."""
    return f'.{adapter}.' in name or name.endswith(f'.{adapter}')


def plain_name(name: str) -> str:
    """The name that a parameter had before its layer was adapted."""
    return re.sub(r'\.(base_layer|original_module)(?=\.|$)', '', name)


def within(name: str, modules: Iterable[str]) -> bool:
    """Whether a module or parameter is one of the modules or inside one."""
    return any(name == module or name.startswith(f'{module}.') for module in modules)
