"""LoRA with a pair of its own for the queries, the keys and the values of one fused ``qkv`` layer.

PEFT puts one pair A (r, d), B (3d, r) on a fused layer, so that queries, keys and values share A and its rank. SoMA, Rein
and transformers' models adapt them apart, each with a rank of r. Here the fused layer stays as it is, and its adapter has
three blocks: ``lora_A`` (3r, d) and ``lora_B`` (3d, r), rows of queries first, then of keys, then of values.

What starts adapters, or changes them together with the base, finds the blocks by
``tensor.chunk(num_blocks(layer, adapter))``: views of A (r, d), of B (d, r) and of the base's weight (d, d) alike.
"""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from mmseg_eomt.adapters.fused_lora import FusedLinear

FUSED = 'qkv'  # the last part of a fused layer's name
NUM_BLOCKS = 3
_FROM_DATA = ('eva', 'corda', 'lora_ga')


@dataclasses.dataclass
class SplitLoraConfig(LoraConfig):
    """PEFT's config of LoRA, whose adapters of layers called ``qkv`` are split; ``r`` is the rank of each block.

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


class SplitLinear(FusedLinear):
    """PEFT's adapted linear layer, some of whose adapters have three pairs of A and B.

    The dropout in front of them is drawn once for the three; on three separate layers PEFT draws it for each.
    """

    plain_b = (nn.Linear, BlockLinear)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change (3d, d) of the base's weight: each block's product."""
        if num_blocks(self, adapter) == 1:
            return super().get_delta_weight(adapter)
        pairs: list[Any] = [self.lora_A[adapter], self.lora_B[adapter]]
        a, b = (pair.weight.chunk(NUM_BLOCKS) for pair in pairs)
        return torch.cat([rows @ columns for columns, rows in zip(a, b, strict=True)]) * self.scaling[adapter]


def num_blocks(layer: Any, adapter: str = 'default') -> int:
    """Number of pairs that an adapter has in a layer of PEFT's: 3 where it is split, and 1 elsewhere."""
    pairs = getattr(layer, 'lora_B', {})
    return getattr(pairs[adapter], 'num_blocks', 1) if adapter in pairs else 1


def split_layers(model: nn.Module, adapter: str = 'default') -> list[str]:
    """Names of the layers in which an adapter is split."""
    return [name for name, layer in model.named_modules() if num_blocks(layer, adapter) > 1]


@contextmanager
def splitting(model: nn.Module, config: Any, adapter: str = 'default') -> Iterator[None]:
    """Split an adapter that PEFT puts in while the context is open, if its config says so.

    Args:
        model: Any model; layers may have other adapters, split or not.
        config: PEFT's, of the adapter.
        adapter: Its name.

    Raises:
        ValueError: If no layer called ``qkv`` is adapted, or one has no thirds.
    """
    if not isinstance(config, SplitLoraConfig):
        yield
        return
    bases = {name: weight.clone() for name, weight in _fused_weights(model)} if _reads_base(config) else {}
    yield
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if name.rpartition('.')[2] == FUSED and adapter in getattr(layer, 'lora_A', {})
    ]
    if not layers:
        raise ValueError(f'split_qkv is set, and no layer called {FUSED} is adapted: name it in target_modules, or drop it.')
    for name, layer in layers:
        if name in bases:  # which PEFT's start of the whole layer may have changed
            layer.get_base_layer().weight.data = bases[name]
        _split(name, layer, config, adapter)


def _reads_base(config: SplitLoraConfig) -> bool:
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights != 'gaussian'


def _fused_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if name.rpartition('.')[2] == FUSED:
            base: Any = module.get_base_layer() if isinstance(module, Linear) else module
            if is_fused(base):
                yield name, base.weight.data


def _split(name: str, layer: Any, config: SplitLoraConfig, adapter: str) -> None:
    """Three pairs in place of one; PEFT itself starts each as on a separate layer, which may change the base."""
    base = layer.get_base_layer()
    if not is_fused(base):
        raise ValueError(
            f'split_qkv takes linear layers whose 3·d rows are queries, keys and values of d inputs, of fp32 or bf16, and '
            f'{name} is {base}: name it in exclude_modules, or drop split_qkv.'
        )
    blocks = _adapted_blocks(base, config, layer.r[adapter], layer.lora_alpha[adapter])
    pairs = dict(
        lora_A=nn.Linear(base.in_features, NUM_BLOCKS * layer.r[adapter], bias=False, device='meta'),
        lora_B=BlockLinear(layer.r[adapter], base.out_features, bias=False, device='meta'),
    )
    for part, linear in pairs.items():
        own = getattr(layer, part)
        weight = torch.cat([getattr(block, part)['default'].weight.detach() for block in blocks])
        linear.weight = nn.Parameter(weight, requires_grad=own[adapter].weight.requires_grad)
        own[adapter] = linear
    weight = torch.cat([block.get_base_layer().weight.data for block in blocks])
    if not torch.equal(weight, base.weight):
        base.weight.data = weight
    if not isinstance(layer, SplitLinear):
        layer.__class__ = SplitLinear


def _adapted_blocks(base: nn.Linear, config: SplitLoraConfig, r: int, alpha: float) -> list[Any]:
    """PEFT's layers over a weight's thirds, in place of those that they would be in a separated model."""
    layers = nn.ModuleList(nn.Linear(base.in_features, base.in_features, False, 'meta') for _ in range(NUM_BLOCKS))
    for layer, rows in zip(layers, base.weight.data.chunk(NUM_BLOCKS), strict=True):
        layer.weight = nn.Parameter(rows.clone(), requires_grad=False)
    own: Any = copy.copy(config)
    own.r, own.lora_alpha, own.rank_pattern, own.alpha_pattern = r, alpha, {}, {}
    own.target_modules = {name for name, _ in layers.named_children()}
    own.exclude_modules = own.layers_to_transform = own.layers_pattern = own.modules_to_save = None
    inject_adapter_in_model(own, layers)
    blocks: list[Any] = list(layers)
    for variant in blocks[0].lora_variant.values():
        raise ValueError(f'split_qkv takes LoRA without variants, got {type(variant).__name__}: drop one of the two.')
    return blocks


def is_fused(module: nn.Module) -> bool:
    """Whether it is a linear layer of thrice as many outputs as inputs, whose weights are numbers and no codes."""
    return (
        isinstance(module, nn.Linear)
        and module.out_features == NUM_BLOCKS * module.in_features
        and module.weight.is_floating_point()
    )
