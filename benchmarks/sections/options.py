"""What a user may switch on: compilation, a fused optimizer, activation checkpointing of the predictions alone."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.candidates import Candidate, check_scores, example, models, step, with_lora
from benchmarks.meter import Meter
from benchmarks.report import row
from benchmarks.sections.gpu import compiled


def options(meter: Meter, arch: str, device: str, side: int = 512) -> list[dict]:
    """One image with each option off and on, and an optimizer's step by itself."""
    ours, theirs = models(arch, side, device)
    image, labels = example(side, 1, device)
    fast = compiled(ours)
    rows = [dict(error=check_scores(ours, fast, image))]
    lora, _ = with_lora(ours, theirs)
    again = copy.deepcopy(lora)
    again.decode_head.masks_with_cp = True
    scores = {name: partial(_infer, model.eval(), image) for name, model in dict(off=ours, on=fast).items()}
    pairs: dict[str, Callable[[], dict]] = {
        'inference, compiled': lambda: meter(scores),
        'step, compiled': lambda: meter(_steps(ours, fast, image, labels)),
        'step, LoRA, masks_with_cp': lambda: meter(_steps(lora, again, image, labels)),
        'AdamW step alone, fused': lambda: meter({name: _adamw(ours, on) for name, on in (('off', None), ('on', True))}),
    }
    for title, measure in pairs.items():
        taken = measure()
        rows.append(row(title, ours=taken['on'], off=taken['off']))
    return rows


def _infer(model: Candidate, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model.scores(image)


def _steps(off: Candidate, on: Candidate, image: Tensor, labels: Tensor) -> dict[str, Callable[[], None]]:
    return {name: partial(step, model.train(), image, labels) for name, model in dict(off=off, on=on).items()}


def _adamw(model: nn.Module, fused: bool | None) -> Callable[[], object]:
    """A step of AdamW over copies of a model's parameters."""
    parameters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return torch.optim.AdamW(parameters, 1e-6, fused=fused).step
