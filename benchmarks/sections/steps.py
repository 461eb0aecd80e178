"""Training steps and inference against transformers, over image sizes and batches."""

import copy
import os
from functools import partial

import torch

from benchmarks.candidates import check_losses, check_scores, example, models, step, with_lora
from benchmarks.meter import Meter
from benchmarks.report import row

LIMITS = dict(inference=2.2e6, training=1.2e6)  # pixels of a batch on a CPU, so that all sections take 20 minutes


def headline(meter: Meter, arch: str, device: str) -> list[dict]:
    """A training step, all parameters and LoRA, with and without activation checkpointing."""
    image, labels = example(512, 2, device)
    ours, theirs = models(arch, 512, device)
    rows = [dict(scores=check_scores(ours, theirs, image), losses=check_losses(ours, theirs, image, labels))]
    lora, their_lora = with_lora(ours, theirs)
    again, lora_again = copy.deepcopy(ours), copy.deepcopy(lora)
    again.recompute(True)
    lora_again.recompute(True)
    candidates = dict(
        ours=ours, again=again, lora=lora, lora_again=lora_again, hugging_face=theirs, hugging_face_lora=their_lora
    )
    taken = meter({name: partial(step, model.train(), image, labels) for name, model in candidates.items()})
    for title, mine, reference in (
        ('step, all parameters', 'ours', 'hugging_face'),
        ('step, all, activation checkpointing', 'again', 'hugging_face'),
        ('step, LoRA against all', 'lora', 'hugging_face'),
        ('step, LoRA against LoRA', 'lora', 'hugging_face_lora'),
        ('step, LoRA, activation checkpointing', 'lora_again', 'hugging_face_lora'),
    ):
        rows.append(row(f'{arch} 512 batch 2: {title}', ours=taken[mine], hugging_face=taken[reference]))
    return rows


def sweep(kind: str, meter: Meter, arch: str, device: str, sides: tuple[int, ...], batches: tuple[int, ...]) -> list[dict]:
    """Inference or training steps over image sizes and batches; what would not fit the memory or the time is skipped."""
    rows = []
    for side in sides:
        ours, theirs = models(arch, side, device)
        per_image = 0
        for batch in batches:
            image, labels = example(side, batch, device)
            if device == 'cpu' and side**2 * batch > LIMITS[kind]:
                continue
            if per_image * batch > 0.7 * total_mb(device):
                print(f'{arch} {side} batch {batch}: skipped, it would take about {per_image * batch / 1024:.0f} GB')
                continue
            error = check_scores(ours, theirs, image)
            theirs.mask(kind == 'training')
            candidates = dict(ours=ours.train(kind == 'training'), hugging_face=theirs.train(kind == 'training'))
            with torch.set_grad_enabled(kind == 'training'):
                taken = meter(
                    {
                        name: partial(step, model, image, labels) if kind == 'training' else partial(model.scores, image)
                        for name, model in candidates.items()
                    }
                )
            per_image = (taken['hugging_face']['peak_mb'] or 0) / batch
            rows.append(row(f'{arch} {side} batch {batch}', side=side, batch=batch, arch=arch, error=error, **taken))
    return rows


def total_mb(device: str) -> float:
    if device == 'cuda':
        return torch.cuda.get_device_properties(0).total_memory / 2**20
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**20
