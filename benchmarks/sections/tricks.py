"""What each trick brings: all of them against all but one."""

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor

from benchmarks.candidates import Ours, example, models, step, weighted_as_written, with_lora
from benchmarks.meter import Meter
from benchmarks.report import row
from mmseg_eomt.adapters.fused_lora import FusedLinear
from mmseg_eomt.models import layers, losses, mask_module, mask_rows, query_head


class OneCallAttention(layers.Attention):
    """All rows with an N×N mask, as the method is written."""

    def forward(self, x: Tensor, query_mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None
        if query_mask is not None:
            mask = F.pad(query_mask, (0, 0, 0, N - query_mask.shape[1]), value=True)[:, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, N, C))


class ChannelsFirst(mask_module.ScaleBlock):
    """The scale block in the memory layout of convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return self.norm(self.conv2(F.gelu(self.conv1(x))).permute(0, 2, 3, 1)).contiguous(
            memory_format=torch.contiguous_format
        )


def logits_as_written(blocks: mask_module.Upscale, queries: Tensor, patches: Tensor) -> Tensor:
    for block in blocks:
        patches = block(patches)
    return torch.einsum('bqc,bhwc->bqhw', queries, patches)


def _scores_as_written(masks: Tensor, weights: Tensor, padded: tuple, size: tuple, tolerance: float) -> Tensor:
    return weighted_as_written(masks, weights, size)


def _changes() -> dict[str, list[tuple[object, str, object]]]:
    """What undoes each trick: owner, attribute and value."""
    as_written = (mask_module.Upscale, 'forward', logits_as_written)
    return {
        'two-call attention, contiguous heads': [(layers.Attention, 'forward', OneCallAttention.forward)],
        'mask module channels last': [(mask_module.ScaleBlock, 'forward', ChannelsFirst.forward), as_written],
        'one map kept, strips': [as_written],
        'strips alone': [(mask_module, 'STRIP_ELEMENTS', 10**12), (mask_rows, 'ROW_ELEMENTS', 10**12)],
        'some tokens at a time': [(layers, 'HIDDEN_ELEMENTS', 10**12)],
        'one function per adapted layer': [(FusedLinear, 'forward', Linear.forward)],
        'points of some masks at a time': [(losses, 'MASKS_AT_ONCE', 10**6)],
        'scores in strips': [(query_head, 'pixel_scores', _scores_as_written)],
    }


@contextlib.contextmanager
def undone(trick: str):
    """Every model with one trick undone."""
    changed: list[tuple[object, str, object]] = []
    for owner, name, value in _changes().get(trick, ()):
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)


TRICKS = {
    'step': (
        'two-call attention, contiguous heads',
        'mask module channels last',
        'one map kept, strips',
        'strips alone',
        'points of some masks at a time',
    ),
    'LoRA step': ('one function per adapted layer',),
    'inference': (
        'two-call attention, contiguous heads',
        'mask module channels last',
        'strips alone',
        'some tokens at a time',
        'scores in strips',
    ),
}


def _with_undone(trick: str, kind: str, model: Ours, image: Tensor, labels: Tensor) -> None:
    training = kind != 'inference'
    with undone(trick), torch.set_grad_enabled(training):
        step(model.train(), image, labels) if training else model.eval().scores(image)


def tricks(meter: Meter, arch: str, device: str) -> list[dict]:
    """What each trick brings: everything with it undone over everything."""
    rows = []
    for kind, side, batch in (('step', 512, 2), ('LoRA step', 512, 2), ('inference', 1024, 1)):
        ours, theirs = models(arch, side, device)
        if kind == 'LoRA step':
            ours, _ = with_lora(ours, theirs)
        image, labels = example(side, batch, device)

        taken = meter(
            {
                'ours': partial(_with_undone, '', kind, ours, image, labels),
                **{trick: partial(_with_undone, trick, kind, ours, image, labels) for trick in TRICKS[kind]},
            }
        )
        for trick in TRICKS[kind]:
            rows.append(row(f'{kind}: {trick}', ours=taken['ours'], without=taken[trick]))
    return rows
