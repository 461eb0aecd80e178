"""No adapter weights are dropped with a log line."""

import functools

from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn


def is_adapter(name: str) -> bool:
    """Whether a name in a state dict is that of an adapter's parameter."""
    return '.lora_' in name


def refuse_dropped_adapters() -> None:
    """Let mmengine refuse a checkpoint with adapters for a model without; a second call changes nothing.

    mmengine loads checkpoints without strictness: such a model would take none of the adapted layers, and only a long log
    line would say so. ``load_from``, ``init_model``, ``tools/test.py`` and ``MMSegInferencer`` all load through the function
    that is wrapped here.
    """
    load = mmengine_checkpoint.load_state_dict
    if hasattr(load, '__wrapped__'):
        return

    @functools.wraps(load)
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args, **kwargs) -> None:
        given = [name for name in state_dict if is_adapter(name)]
        if given and not any(is_adapter(name) for name, _ in module.named_parameters()):
            raise RuntimeError(
                f'The checkpoint has LoRA adapters ({len(given)} tensors, such as {given[0]}), but the model has none: '
                f'adapters come with LoRAHook in custom_hooks, in tools/test.py and tools/train.py; init_model and '
                f'MMSegInferencer run no hooks.'
            )
        return load(module, state_dict, *args, **kwargs)

    mmengine_checkpoint.load_state_dict = load_state_dict
