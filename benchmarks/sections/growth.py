"""How time and memory grow with tokens, queries and classes, and how much of it is attention."""

import math
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.candidates import CLASSES, QUERIES, Arch, Ours, example, step
from benchmarks.meter import Meter
from benchmarks.report import line

KINDS = ('inference', 'step')
SIDE = 512
VARIED: dict[str, dict[str, tuple[int, ...]]] = {  # a step at 1024×1024 would take a minute of these sections' twenty
    'tokens': dict(inference=(256, 384, 512, 768, 1024), step=(256, 384, 512, 768)),  # as sides of the image
    'queries': dict(inference=(100, 200, 400), step=(100, 200, 400)),
    'classes': dict(inference=(CLASSES, 150, 1000), step=(CLASSES, 150, 1000)),
}
ATTENTION = ('scaled_dot_product', 'flash_attention', 'efficient_attention', 'cudnn_attention')


def growth(meter: Meter, arch: Arch, device: str, varied: dict = VARIED, side: int = SIDE) -> list[dict]:
    """One image's inference and training step, over one number at a time; the sizes take turns."""
    rows = []
    for name, kinds in varied.items():
        for kind in KINDS:
            calls = {value: _call(name, value, kind, arch, device, side) for value in kinds[kind]}
            with torch.set_grad_enabled(kind == 'step'):
                shares = {value: attention_share(call, device) for value, call in calls.items()}
                taken = meter({str(value): call for value, call in calls.items()})
            points = [
                dict(value=(value // 16) ** 2 if name == 'tokens' else value, **taken[str(value)], share=shares[value])
                for value in calls
            ]
            rows += _rows(name, kind, points)
    return rows


def _call(name: str, value: int, kind: str, arch: Arch, device: str, side: int) -> Callable[[], object]:
    torch.manual_seed(0)
    side = value if name == 'tokens' else side
    num_classes, num_queries = (
        value if name == which else usual for which, usual in (('classes', CLASSES), ('queries', QUERIES))
    )
    model = Ours(arch, side, num_classes, num_queries).to(device).train(kind == 'step')
    model.low = device == 'cuda'
    image, labels = example(side, 1, device, num_classes)
    return partial(step, model, image, labels) if kind == 'step' else partial(model.scores, image)


def _rows(name: str, kind: str, points: list[dict]) -> list[dict]:
    """Each size's figures, and the power of the number with which the time outside attention grew since the size before."""
    rows = []
    for before, point in zip([None, *points], points):
        attention = round(point['seconds'] * point.pop('share'), 4)
        point['outside'] = round(point['seconds'] - attention, 4)
        if before:
            grown = math.log(point['outside'] / before['outside'])
            point['power'] = round(grown / math.log(point['value'] / before['value']), 2)
        rows.append(dict(title=f'{kind}, {point["value"]:,} {name}', varied=name, kind=kind, attention=attention, **point))
        line(rows[-1]['title'], {'': point}, f'attention {attention:.3f} s, outside {point["outside"]:.3f} s')
    return rows


def attention_share(call: Callable[[], object], device: str) -> float:
    """Of a call's time, what the profiler finds in attention's kernels, forward and backward; the second call is read."""
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == 'cuda' else [])]
    with profile(activities=activities) as trace:
        call()
    field = 'self_device_time_total' if device == 'cuda' else 'self_cpu_time_total'
    times = {event.key: getattr(event, field) for event in trace.key_averages()}
    attention = sum(time for key, time in times.items() if any(part in key.lower() for part in ATTENTION))
    if not attention:
        sys.exit('The profiler found no attention: its kernels have other names, which belong into ATTENTION of growth.py.')
    return attention / sum(times.values())
