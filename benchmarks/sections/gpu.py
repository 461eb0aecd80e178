"""What a GPU page needs: sizes, precisions and compilation, each with the peak that the planner predicts."""

import copy
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.candidates import Arch, Candidate, Ours, Theirs, check_scores, example, models, step, with_lora
from benchmarks.meter import Meter
from benchmarks.report import line
from benchmarks.sections.prediction import predicted_mb
from mmseg_eomt.models.arch import get_arch

PRECISIONS = dict(fp32=False, bf16=True)
CANDIDATES = ('ours', 'compiled', 'hugging_face')
KINDS = ('inference', 'step, all parameters', 'step, LoRA', 'step, LoRA, activation checkpointing')


def gpu(meter: Meter, arch: Arch, device: str, side: int = 640, batch: int = 4) -> list[dict]:
    """Inference and training steps in fp32 and bf16, eager and compiled, against transformers; what does not fit is None."""
    rows = []
    image, labels = example(side, batch, device)
    name = arch if isinstance(arch, str) else 'tiny'
    for precision, low in PRECISIONS.items():
        ours, theirs = models(arch, side, device, low)
        error = check_scores(ours, theirs, image)
        for kind in KINDS:
            _release(device)
            figures = _take(meter, kind, ours, theirs, image, labels)
            figures['predicted_mb'] = predicted_mb(arch, side, batch, device, low, kind)
            title = f'ViT {name}, {precision}: {kind}'
            rows.append(dict(title=title, side=side, batch=batch, **figures, error=error))
            fitting = {candidate: figures[candidate] for candidate in CANDIDATES if figures.get(candidate)}
            line(title, fitting, f'{figures["speed"]}× and {figures["compiled_speed"]}× speed-up')
    return rows


def _take(meter: Meter, kind: str, ours: Ours, theirs: Theirs, image: Tensor, labels: Tensor) -> dict[str, Any]:
    if 'LoRA' in kind:
        ours, theirs = with_lora(ours, theirs)
    ours.recompute('checkpointing' in kind)
    theirs.mask(kind != 'inference')
    candidates = dict(zip(CANDIDATES, (ours, compiled(ours), theirs)))
    if 'checkpointing' in kind:  # in a compiled block under autocast it recomputes other operations than it ran
        del candidates['compiled']
    taken = measured(meter, {name: _call(model, kind, image, labels) for name, model in candidates.items()})
    return dict(**taken, weights_mb=round(held(ours)), **speeds(taken))


def compiled(model: Ours) -> Ours:
    """A copy whose backbone and head are compiled, as ``compile=True`` of a config compiles them."""
    torch._dynamo.reset()  # else what was compiled before counts towards its limit, and later models run eagerly
    model = copy.deepcopy(model)
    for part in (model.backbone, model.decode_head):
        part.compile()
    return model


def _call(model: Candidate, kind: str, image: Tensor, labels: Tensor) -> Callable[[], object]:
    return partial(_infer, model.eval(), image) if kind == 'inference' else partial(step, model.train(), image, labels)


def _infer(model: Candidate, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.scores(image)


def measured(meter: Meter, calls: dict[str, Callable[[], object]]) -> dict[str, dict | None]:
    """Figures of the calls that fit the memory, and None of the others."""
    fitting = {}
    for name, call in calls.items():
        try:
            call()
            fitting[name] = call
        except torch.OutOfMemoryError:
            print(f'{name} does not fit the memory.')
        _release(meter.device)
    taken = meter(fitting)
    return {name: taken.get(name) for name in calls}


def speeds(taken: dict[str, dict | None]) -> dict[str, float | None]:
    """How much faster ours is than transformers', eager and compiled, and its memory over theirs."""
    ours, fast, theirs = (taken.get(name) for name in CANDIDATES)
    return dict(
        speed=round(theirs['seconds'] / ours['seconds'], 2) if ours and theirs else None,
        compiled_speed=round(theirs['seconds'] / fast['seconds'], 2) if fast and theirs else None,
        memory=round(ours['peak_mb'] / theirs['peak_mb'], 2) if ours and theirs and theirs['peak_mb'] else None,
    )


def held(model: Candidate) -> float:
    """MB of a model's weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 2**20


def _release(device: str) -> None:
    gc.collect()
    if device == 'cuda':
        torch.cuda.empty_cache()


def matrix_rate(device: str, size: int = 8192) -> float:
    """Measured FLOP/s of large bf16 matrix products."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / Meter(device, 10)(dict(product=lambda: a @ a))['product']['seconds']


def large_lora(meter: Meter, arch: Arch, device: str, side: int = 640, batch: int = 4, product: int = 8192) -> list[dict]:
    """LoRA: total memory without optimizer states, tokens per second and fraction of the matrix rate."""
    ours, _ = with_lora(*models(arch, side, device, low=True))
    image, labels = example(side, batch, device)
    size, tokens = get_arch(arch), batch * (side // 16) ** 2
    # forward and the gradients of what goes in, of the linear layers and the attention; the mask module comes on top
    per_token = 4 * size.num_layers * (12 * size.embed_dims**2 + 2 * size.embed_dims * tokens // batch)
    rate = matrix_rate(device, product)
    rows = []
    for again in (False, True):
        ours.recompute(again)
        _release(device)
        taken = meter(dict(ours=lambda: step(ours.train(), image, labels)))['ours']
        speed = tokens / taken['seconds']
        title = f'ViT {arch if isinstance(arch, str) else "tiny"}, LoRA{", activation checkpointing" if again else ""}'
        figures = dict(
            total_gb=round((held(ours) + taken['peak_mb']) / 1024, 2),
            tokens_per_second=round(speed),
            share_of_matrix_rate=round(speed * per_token / rate, 3),
        )
        rows.append(dict(title=title, ours=taken, **figures))
        line(title, dict(ours=taken), ', '.join(f'{name} {value}' for name, value in figures.items()))
    return rows
