"""A frozen base that takes less memory: bf16, or 8 and 4 bits through bitsandbytes."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.adapters.names import is_in_modules
from mmseg_eomt.models.layers import KeyBiasFreeLinear

PRECISIONS = ('fp32', 'bf16', '8bit', '4bit')


class ReducedLinear(nn.Linear):
    """A frozen linear layer whose weights are kept in a smaller type; input and output keep theirs."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the type of ``x``."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def reduce_precision(model: nn.Module, precision: str, trainable_modules: Sequence[str] = ()) -> int:
    """Keep the weights of frozen linear layers, which are nearly all of a ViT's, in less memory.

    Args:
        model: A plain model, its weights in.
        precision: ``'bf16'`` (2 bytes a weight instead of 4), ``'8bit'`` or ``'4bit'`` (LLM.int8() and NF4 of bitsandbytes).
        trainable_modules: Modules that are left as they are.

    Returns:
        The number of layers.

    Raises:
        ImportError: If bitsandbytes is needed and not installed.
        ValueError: If the precision is unknown.
    """
    if precision not in PRECISIONS[1:]:
        raise ValueError(f'base_precision is one of {PRECISIONS}, got {precision!r}.')
    if precision != 'bf16':
        _import_bitsandbytes()
    attentions = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, KeyBiasFreeLinear)
        and not is_in_modules(name, trainable_modules)
        and not is_in_modules(name, attentions)
    ]
    for name, layer in layers:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, _bf16(layer) if precision == 'bf16' else _quantized(layer, precision))
    return len(layers)


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that bitsandbytes has quantized."""
    return [name for name, module in model.named_modules() if type(module).__module__.startswith('bitsandbytes.')]


def full_precision(layer: Any) -> None:
    """Give a layer of PEFT's whose base was reduced to bf16 a base of fp32 again, so that merging rounds nothing more."""
    base = layer.base_layer
    if isinstance(base, ReducedLinear):
        layer.base_layer = _filled(nn.Linear, base, torch.float32)


def _bf16(layer: nn.Linear) -> nn.Linear:
    return _filled(ReducedLinear, layer, torch.bfloat16)


def _filled(cls: type[nn.Linear], layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    new = cls(layer.in_features, layer.out_features, layer.bias is not None, device='meta')
    for name, parameter in layer.named_parameters():
        setattr(new, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return new.train(layer.training)


def _quantized(layer: nn.Linear, precision: str) -> nn.Module:
    bnb = _import_bitsandbytes()
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    if precision == '8bit':
        new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
    else:
        new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type='nf4')
    new.load_state_dict(layer.state_dict())
    new.requires_grad_(False)
    return new.to(layer.weight.device).train(layer.training)  # the move quantizes


def _import_bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f'A base of 8 or 4 bits needs bitsandbytes ({error}): run pip install bitsandbytes, or use bf16.'
        ) from error
    return bitsandbytes
