"""From LoRAHook's arguments to a config of PEFT's."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mmseg_eomt.adapters.config import lora_config, peft_config

ATTENTION_LAYERS = ('qkv', 'proj', 'q_proj', 'v_proj')


def config_maker(
    r: int | None,
    lora_alpha: float | None,
    lora_dropout: float | None,
    target_modules: Sequence[str],
    exclude_modules: Sequence[str],
    peft: dict[str, Any] | None,
) -> Callable[[], Any]:
    """What makes the config, which needs PEFT, once adapters are needed; see :class:`LoRAHook` for the arguments.

    Raises:
        ValueError: If an argument is of another method, is given twice, or is a name in place of a list.
    """
    for name, value in dict(target_modules=target_modules, exclude_modules=exclude_modules).items():
        if isinstance(value, str):
            raise ValueError(f'{name} is a list of names, got {value!r}.')
    fields = dict(peft or {})
    config_class = fields.pop('type', 'LoraConfig')
    numbers = dict(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    given = {name: value for name, value in numbers.items() if value is not None}
    chosen = {} if tuple(target_modules) == ATTENTION_LAYERS else dict(target_modules=target_modules)
    for name, value in {**given, **chosen}.items():
        if name in fields:
            raise ValueError(f'{name}={value} and peft=dict({name}={fields[name]}): give one of the two.')
    if isinstance(fields.get('target_modules'), str):  # for whole names
        fields['expression'] = fields.pop('target_modules')
    targets = dict(target_modules=target_modules, exclude_modules=exclude_modules)
    if config_class == 'LoraConfig':
        defaults = dict(r=16, lora_alpha=32, lora_dropout=0.05)
        return functools.partial(lora_config, **{**defaults, **targets, **given, **fields})
    if given:
        raise ValueError(f"{list(given)} are LoRA's numbers: put those of {config_class} into peft.")
    return functools.partial(peft_config, config_class, **{**targets, **fields})
