"""No adapter weights are dropped with a log line."""

from torch import nn


def refuse_adapter_weights(module: nn.Module) -> None:
    """Let ``module`` refuse a checkpoint with adapters that it has no place for.

    mmengine loads checkpoints without strictness, so that a model without adapters would take none of a LoRA checkpoint's
    adapted layers and say so only in a long log line.

    Raises (when weights are loaded):
        RuntimeError: If the checkpoint has LoRA weights below the module and the module has no adapters.
    """

    def check(state_dict: dict, prefix: str, *_) -> None:
        given = [name for name in state_dict if name.startswith(prefix) and '.lora_' in name]
        if given and not any('.lora_' in name for name, _ in module.named_parameters()):
            raise RuntimeError(
                f'The checkpoint has LoRA adapters ({len(given)} tensors, such as {given[0]}), but the model has none: '
                f'use the config that it was trained with, LoRAHook in its custom_hooks, in tools/test.py or tools/train.py.'
            )

    module._register_load_state_dict_pre_hook(check)
