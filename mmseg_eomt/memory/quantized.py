"""Frozen layers of 8 and 4 bits as they lie in memory: bitsandbytes itself needs a device with numbers on it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.models.layers import KeyBiasFreeLinear

BYTES = {'8bit': 1.0 + 4 / 1024, '4bit': 0.5 + 4 / 64}  # of a weight, with a scale per row or per 64 weights


class _Dequantized(torch.autograd.Function):
    """A linear layer whose weight is brought to the input's type forward and backward, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> Tensor:
        ctx.packed, ctx.shape = packed, shape
        return F.linear(x, x.new_empty(shape), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ grad.new_empty(ctx.shape), None, None, None


class PackedLinear(nn.Linear):
    """The size of a quantized layer, and what it takes to compute with it."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        if torch.is_autocast_enabled('cpu'):
            x = x.to(torch.get_autocast_dtype('cpu'))
        apply: Any = _Dequantized.apply
        out: Tensor = apply(x, self.weight, self.bias, (self.out_features, self.in_features))
        return out


def quantize(model: nn.Module, precision: str) -> None:
    """Replace the frozen linear layers of a model on the meta device by packed ones."""
    layers: list[Any] = list(model.modules())
    for layer in layers:
        if type(layer) in (nn.Linear, KeyBiasFreeLinear) and not any(p.requires_grad for p in layer.parameters()):
            size = int(layer.weight.numel() * BYTES[precision])
            layer.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device='meta'), requires_grad=False)
            layer.__class__ = PackedLinear
