"""LoRA with a pair of its own for the queries, the keys and the values of one fused ``qkv`` layer.

PEFT puts one pair A (r, d), B (3d, r) on a fused layer, so that queries, keys and values share A and its rank. SoMA, Rein
and transformers' models adapt them apart, each with a rank of r. Here the fused layer stays as it is, and its adapter has
three blocks: ``lora_A`` (3r, d) and ``lora_B`` (3d, r), rows of queries first, then of keys, then of values.

What starts adapters, or changes them together with the base, finds the blocks by
``tensor.chunk(num_blocks(layer, adapter))``: views of A (r, d), of B (d, r) and of the base's weight (d, d) alike.
"""

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

FUSED = 'qkv'  # the last part of a fused layer's name
NUM_BLOCKS = 3
_FROM_DATA = ('eva', 'corda', 'lora_ga')


@dataclasses.dataclass
class SplitLoraConfig(LoraConfig):
    """PEFT's config of LoRA, whose adapters of layers called ``qkv`` are :class:`SplitLinear`; ``r`` is each block's rank.

    Raises:
        ValueError: If a field asks for what three blocks cannot have.
    """

    split_qkv: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        without: dict[str, Any] = dict(
            use_dora=(False,), lora_bias=(False,), bias=('none', 'lora_only'), target_parameters=(None, [])
        )
        asked = [name for name, values in without.items() if getattr(self, name) not in values]
        if self.init_lora_weights in _FROM_DATA:
            asked.append('init_lora_weights')
        for name in asked:
            raise ValueError(f'split_qkv does not go with {name}={getattr(self, name)!r}: drop one of the two.')
        self._register_custom_module({nn.Module: cast(Any, _split_layer)})  # PEFT calls what it takes for a class


def split_config(config: PeftConfig) -> SplitLoraConfig:
    """The same config with ``split_qkv``.

    Raises:
        ValueError: If it is not LoRA's, or has a field that does not go with it.
    """
    if type(config) is not LoraConfig:
        raise ValueError(f'split_qkv is an option of LoRA, got {type(config).__name__}: drop one of the two.')
    return SplitLoraConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init})


class BlockLinear(nn.Linear):
    """Linear layers (r, d) side by side: each third of the input goes through its own third of the rows."""

    num_blocks = NUM_BLOCKS

    def forward(self, x: Tensor) -> Tensor:
        """(…, 3r) to (…, 3d)."""
        parts = zip(x.chunk(NUM_BLOCKS, dim=-1), self.weight.chunk(NUM_BLOCKS), strict=True)
        return torch.cat([F.linear(part, weight) for part, weight in parts], dim=-1)


class SplitLinear(Linear):
    """PEFT's adapted linear layer on a fused layer of queries, keys and values, with three pairs of A and B.

    The dropout in front of them is drawn once for the three; on three separate layers PEFT draws it for each. Adapters whose
    names are not in ``split_adapters`` are PEFT's own, with one pair.
    """

    split_adapters: set[str]

    def __init__(self, base_layer: nn.Linear, adapter_name: str, **kwargs: Any) -> None:
        self.split_adapters = {adapter_name}
        super().__init__(base_layer, adapter_name, **kwargs)

    def update_layer(self, adapter_name: str, r: int, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; PEFT itself starts each block as it starts a separate layer, which may change the base."""
        if adapter_name not in self.split_adapters:
            super().update_layer(adapter_name, r, *args, **kwargs)
            return
        base = cast(nn.Linear, self.get_base_layer())
        parts: list[Any] = [_adapted_rows(rows, adapter_name, r, kwargs) for rows in base.weight.data.chunk(NUM_BLOCKS)]
        first = parts[0]
        for field in ('r', 'lora_alpha', 'scaling', 'use_rslora', 'use_dora', 'lora_bias', 'lora_dropout'):
            getattr(self, field)[adapter_name] = getattr(first, field)[adapter_name]
        self.lora_A[adapter_name] = nn.Linear(base.in_features, NUM_BLOCKS * r, bias=False, device='meta')
        self.lora_B[adapter_name] = BlockLinear(r, base.out_features, bias=False, device='meta')
        for pairs, of in ((self.lora_A, 'lora_A'), (self.lora_B, 'lora_B')):
            weights = [getattr(part, of)[adapter_name].weight.detach() for part in parts]
            pairs[adapter_name].weight = nn.Parameter(torch.cat(weights))
        base.weight.data = _joined(base.weight.data, [part.base_layer.weight.data for part in parts])
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=not first.lora_A[adapter_name].weight.requires_grad)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change (3d, d) of the base's weight: each block's product."""
        if num_blocks(self, adapter) == 1:
            return super().get_delta_weight(adapter)
        pairs: list[Any] = [self.lora_A[adapter], self.lora_B[adapter]]
        a, b = (pair.weight.chunk(NUM_BLOCKS) for pair in pairs)
        return torch.cat([rows @ columns for columns, rows in zip(a, b, strict=True)]) * self.scaling[adapter]


def _adapted_rows(rows: Tensor, adapter_name: str, r: int, kwargs: dict[str, Any]) -> Linear:
    """PEFT's layer over some rows of a weight, in place of the layer that they would be in a separated model."""
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device='meta')
    layer.weight = nn.Parameter(rows, requires_grad=False)
    part = Linear(layer, adapter_name, r=r, **kwargs)
    if part.lora_variant:
        variant = type(part.lora_variant[adapter_name]).__name__
        raise ValueError(f'split_qkv takes LoRA without variants, got {variant}: drop one of the two.')
    return part


def _joined(weight: Tensor, parts: list[Tensor]) -> Tensor:
    """A weight whose rows are those of the parts: itself where these are its own."""
    own = [rows.data_ptr() for rows in weight.chunk(NUM_BLOCKS)]
    return weight if own == [part.data_ptr() for part in parts] else torch.cat(parts)


def _split_layer(target: nn.Module, adapter_name: str, **kwargs: Any) -> SplitLinear | None:
    """What PEFT puts in place of a layer that is adapted; None leaves the choice to PEFT."""
    name = kwargs['target_name']
    if name.rpartition('.')[2] != FUSED:
        return None
    if not is_fused(target):
        raise ValueError(
            f'split_qkv takes linear layers whose 3·d rows are queries, keys and values of d inputs, of fp32 or bf16, and '
            f'{name} is {target}: name it in exclude_modules, or drop split_qkv.'
        )
    return SplitLinear(cast(nn.Linear, target), adapter_name, **kwargs)


def is_fused(module: nn.Module) -> bool:
    """Whether it is a linear layer of thrice as many outputs as inputs, whose weights are numbers and no codes."""
    return (
        isinstance(module, nn.Linear)
        and module.out_features == NUM_BLOCKS * module.in_features
        and module.weight.is_floating_point()
    )


def num_blocks(layer: Any, adapter: str = 'default') -> int:
    """Number of pairs that an adapter has in a layer of PEFT's: 3 where it is split, and 1 elsewhere."""
    pairs = getattr(layer, 'lora_B', {})
    return getattr(pairs[adapter], 'num_blocks', 1) if adapter in pairs else 1


def split_layers(model: nn.Module, adapter: str = 'default') -> list[str]:
    """Names of the layers in which an adapter is split."""
    return [name for name, layer in model.named_modules() if num_blocks(layer, adapter) > 1]


def check_split(model: nn.Module, config: PeftConfig) -> None:
    """Make sure that ``split_qkv`` has split a layer.

    Raises:
        ValueError: If no adapted layer is called ``qkv``.
    """
    if isinstance(config, SplitLoraConfig) and not split_layers(model):
        raise ValueError(f'split_qkv is set, and no layer called {FUSED} is adapted: name it in target_modules, or drop it.')


def make_room(model: nn.Module, config: PeftConfig, adapter: str) -> None:
    """Let layers that have adapters take one more, split or not, beside them.

    Args:
        model: Any model; nothing happens to one without adapters.
        config: Of the adapter that PEFT is to put in.
        adapter: Its name.
    """
    if not isinstance(config, SplitLoraConfig):
        return
    layers: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear)]
    for name, layer in layers:
        if name.rpartition('.')[2] != FUSED or not is_fused(layer.get_base_layer()):
            continue
        if not isinstance(layer, SplitLinear):
            layer.__class__ = SplitLinear
            layer.split_adapters = set()
        layer.split_adapters.add(adapter)
