"""LoRA's linear layer in one step, which keeps less for the backward pass than PEFT's own and draws dropout faster."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmseg_eomt.models.device import on_cpu
from mmseg_eomt.models.layers import KeyBiasFreeLinear, has_hooks

DRAWS = 2**16  # values of a random number of 16 bits


class FusedLinear(Linear):
    """PEFT's adapted linear layer; in training, the plain case is one function of autograd.

    Plain is one active adapter without variant or bias on a frozen linear layer, no autocast, and nothing that watches the
    parts; all else is PEFT's. Reentrant checkpointing, which runs without gradients first, drops the same elements again.
    The numbers are PEFT's but for rounding; on a CPU, the dropout's probability is rounded to a multiple of 2⁻¹⁶, and its
    random numbers are others.
    """

    plain_b: tuple[type[nn.Module], ...] = (nn.Linear,)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        adapter = None if args or kwargs else self._plain_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.get_base_layer()
        a, b = self.lora_A[adapter], self.lora_B[adapter]
        dropout: Any = self.lora_dropout[adapter]
        scale, kept = self.scaling[adapter], None
        if isinstance(dropout, nn.Dropout) and dropout.training:
            kept, rate = _drawn(x, dropout.p)
            scale /= 1 - rate
        bias = base.bias * base.bias_mask if isinstance(base, KeyBiasFreeLinear) else base.bias
        blocks = getattr(b, 'num_blocks', 1)
        return _AdaptedLinear.apply(x, base.weight, bias, a.weight, b.weight, kept, scale, blocks)

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one active adapter, if the layer is as the class docstring says."""
        if self.disable_adapters or self.merged or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        if x.device.type == 'meta' or torch.is_autocast_enabled(x.device.type):
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        base: Any = self.get_base_layer()
        a, b, dropout = (part[active[0]] for part in (self.lora_A, self.lora_B, self.lora_dropout))
        kinds = ((nn.Linear, KeyBiasFreeLinear), (nn.Linear,), self.plain_b, (nn.Dropout, nn.Identity))
        if any(type(part) not in kind or has_hooks(part) for part, kind in zip((base, a, b, dropout), kinds)):
            return None
        if not torch.is_grad_enabled() and not getattr(dropout, 'training', False):
            return None
        if a.bias is not None or b.bias is not None or base.weight.requires_grad or getattr(dropout, 'p', 0) > 0.99:
            return None
        return active[0] if x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype else None


def _drawn(x: Tensor, rate: float) -> tuple[Tensor, float]:
    """Which elements of an input dropout keeps, in rows (n, in_features), and the fraction that it drops."""
    size = (x[..., 0].numel(), x.shape[-1])
    if not on_cpu(x):
        return torch.empty(size, dtype=torch.bool, device=x.device).bernoulli_(1 - rate), rate
    # four of 16 bits in each of 64, which takes less time than bernoulli_
    drops, count = round(rate * DRAWS), size[0] * size[1]
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None).view(torch.int16)
    return numbers[:count].view(size) >= drops - DRAWS // 2, drops / DRAWS


def _dropped(rows: Tensor, kept: Tensor | None) -> Tensor:
    return rows if kept is None else torch.where(kept, rows, 0)


class _AdaptedLinear(torch.autograd.Function):
    """x · Wᵀ + bias + scale · dropout(x) · Aᵀ · Bᵀ for a frozen W, in ``blocks`` pairs of A and B side by side.

    Kept are the layer's input, which others often keep too, a byte per element of it for the dropout, and the few numbers
    between A and B. Autograd would keep the dropout's factors and result, each as large as the input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        kept: Tensor | None,
        scale: float,
        blocks: int,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(rows, weight, bias)
        between = F.linear(_dropped(rows, kept), a)
        for part, low, up in zip(out.chunk(blocks, 1), between.chunk(blocks, 1), b.chunk(blocks)):
            part.addmm_(low, up.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, kept, between)
        ctx.scale, ctx.blocks = scale, blocks
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, kept, between = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        parts = list(zip(grad.chunk(ctx.blocks, 1), between.chunk(ctx.blocks, 1), b.chunk(ctx.blocks)))
        grad_between = torch.cat([part @ up for part, _, up in parts], 1) * ctx.scale
        grads: list[Tensor | None] = [None] * 8
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if kept is None:
                grad_x.addmm_(grad_between, a)
            else:
                grad_x += _dropped(grad_between @ a, kept)
            grads[0] = grad_x.view(x.shape)
        if ctx.needs_input_grad[2]:
            grads[2] = grad.sum(0)
        if ctx.needs_input_grad[3]:
            grads[3] = grad_between.T @ _dropped(x.reshape(-1, x.shape[-1]), kept)
        if ctx.needs_input_grad[4]:
            grads[4] = torch.cat([part.T @ low for part, low, _ in parts]) * ctx.scale
        return tuple(grads)
