#!/usr/bin/env python
"""Peaks of memory that tools/plan.py predicts, and what a CPU takes.

    python benchmarks/memory.py [--only 0 3]

For each of ten settings of ViT-S and ViT-B at 512×512 and 640×640: the peak of a training step (forward, losses, backward,
with the optimizer's states of an earlier step), predicted by mmseg_eomt.memory for the code of a CPU, and measured in a
process of its own, from before the model is built. The measured peak is the process's highest resident memory, with all
larger pieces of memory given back to the system as soon as they are free. Prints a table and writes results/memory.json.

    python benchmarks/memory.py --table

prints and writes (results/memory_gpu.json) what is predicted for the published configs on a GPU: nothing of it is measured.
"""

import argparse
import contextlib
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

RESULTS = Path(__file__).with_name('results')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
LORA = [dict(type='LoRAHook')]
BF16 = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
SETTINGS: list[tuple[str, str, int, int, dict]] = [  # name, arch, side, batch, options
    ('all parameters', 'small', 512, 2, {}),
    ('all parameters', 'small', 640, 1, {}),
    ('all, activation checkpointing', 'small', 512, 4, {'model.vit.with_cp': True}),
    ('all, bf16', 'small', 512, 2, BF16),
    ('LoRA', 'small', 512, 2, {'custom_hooks': LORA}),
    ('LoRA, activation checkpointing', 'small', 640, 2, {'custom_hooks': LORA, 'model.vit.with_cp': True}),
    ('all parameters', 'base', 512, 1, {}),
    ('all, activation checkpointing', 'base', 640, 1, {'model.vit.with_cp': True}),
    ('LoRA', 'base', 640, 1, {'custom_hooks': LORA}),
    ('LoRA, base in bf16', 'base', 512, 1, {'custom_hooks': [dict(type='LoRAHook', base_precision='bf16')]}),
]
TABLE = [
    (arch, side, adapted)
    for arch in ('small', 'base', 'large', 'giant')
    for side in (512, 640, 1024)
    for adapted in (False, True)
]
CLASSES = 19
# every larger piece is mapped by itself and unmapped when it is free: what is resident is what is used
MALLOC = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1')


def config_of(arch: str, side: int, batch: int, options: dict):
    """The published recipe for Cityscapes with another ViT and size."""
    from mmengine.config import Config

    import mmseg_eomt  # noqa: F401  repairs what the toolbox needs

    config = Config.fromfile(CONFIGS / 'eomt_cityscapes.py')
    config.merge_from_dict({'model.vit.arch': arch, 'model.vit.pretrained': None, 'model.vit.img_size': (side, side)})
    config.merge_from_dict({'train_dataloader.batch_size': batch, 'optim_wrapper.accumulative_counts': 1, **options})
    config.train_pipeline = [dict(type='RandomCrop', crop_size=(side, side))]
    return config


def predicted(number: int) -> dict:
    """Of a setting, in MB by part."""
    from mmseg_eomt.memory import predict

    _, *setting = SETTINGS[number]
    parts = predict(config_of(*setting), 'cpu', evaluate=False).training
    return {part: round(size / 2**20, 1) for part, size in parts.items()}


def measured(number: int) -> float:
    """MB that this process has taken at most since before it built the model."""
    _, *setting = SETTINGS[number]
    config = config_of(*setting)
    import torch
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import HOOKS, MODELS

    from benchmarks.candidates import example
    from benchmarks.meter import _memory
    from mmseg_eomt.memory.faked import adapt, batch_of
    from mmseg_eomt.memory.predict import plain_wrapper

    _warm_up()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    before = _memory('VmRSS')
    model = MODELS.build(config.model).train()
    for hook in config.custom_hooks:
        if hook['type'] == 'LoRAHook':
            adapt(model, HOOKS.build(hook))
    optimizer = build_optim_wrapper(model, plain_wrapper(config.optim_wrapper)).optimizer
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
    images, samples = batch_of(setting[2], setting[1], setting[1])
    image, labels = example(setting[1], setting[2], 'cpu')
    images.copy_(image)
    for sample, label in zip(samples, labels):
        sample.gt_sem_seg.data.copy_(label)
    del image, labels
    lowered = config.optim_wrapper.type == 'AmpOptimWrapper'
    with torch.autocast('cpu', torch.bfloat16) if lowered else contextlib.nullcontext():
        losses = model.loss(images, samples)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return round((_memory('VmHWM') - before) / 1024, 1)


def _warm_up() -> None:
    """Let the libraries make what they keep."""
    import torch

    x = torch.randn(64, 64, requires_grad=True)
    torch.nn.functional.conv2d((x @ x)[None, None], torch.ones(1, 1, 3, 3)).sum().backward()


def compare(numbers: list[int]) -> None:
    """Each setting predicted and measured, in processes of their own."""
    from mmseg_eomt.tables import markdown_table

    rows = []
    for number in numbers:
        name, arch, side, batch, _ = SETTINGS[number]
        figures = {}
        for what in ('predicted', 'measured'):
            command = [sys.executable, __file__, '--do', what, str(number)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **MALLOC})
            figures[what] = json.loads(done.stdout.splitlines()[-1])
        total = sum(figures['predicted'].values())
        row = dict(setting=name, arch=arch, side=side, batch=batch, predicted_mb=round(total), **figures)
        row['error'] = round(total / figures['measured'] - 1, 3)
        print(name, arch, side, batch, round(total), figures['measured'], f'{row["error"]:+.1%}', flush=True)
        rows.append(row)
    _write('memory.json', rows)
    titles = ('ViT', 'size', 'batch', 'setting', 'predicted', 'measured', 'difference')
    lines = [
        (
            *(str(r[name]) for name in ('arch', 'side', 'batch', 'setting')),
            *(f'{r["predicted_mb"]:,} MB', f'{r["measured"]:,.0f} MB', f'{r["error"]:+.1%}'),
        )
        for r in rows
    ]
    print('\n'.join(markdown_table([titles, *lines])))


def table() -> None:
    """The published configs on a GPU, predicted."""
    from mmseg_eomt.memory import predict
    from mmseg_eomt.tables import markdown_table

    rows = []
    for arch, side, adapted in TABLE:
        row: dict = dict(arch=arch, side=side, adapted=adapted)
        for name, options in (
            ('fp32', {}),
            ('bf16', BF16),
            ('bf16_cp', {**BF16, 'model.vit.with_cp': True}),
        ):
            hooks = {'custom_hooks': LORA} if adapted else {}
            config = config_of(arch, side, 4, {**options, **hooks, 'optim_wrapper.accumulative_counts': 4})
            row[name] = round(sum(predict(config, evaluate=False).training.values()) / 1e9, 1)
        print(row, flush=True)
        rows.append(row)
    _write('memory_gpu.json', rows)
    titles = ('ViT', 'crop', 'trained', 'fp32', 'bf16', 'bf16, checkpointing')
    lines = [
        (r['arch'], f'{r["side"]}', 'LoRA' if r['adapted'] else 'all', *(f'{r[n]} GB' for n in ('fp32', 'bf16', 'bf16_cp')))
        for r in rows
    ]
    print('\n'.join(markdown_table([titles, *lines])))


def _write(name: str, rows: list[dict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(rows, indent=1) + '\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', type=int, nargs='+', default=list(range(len(SETTINGS))), help='numbers of settings')
    parser.add_argument('--table', action='store_true', help='the published configs on a GPU, predicted')
    parser.add_argument('--do', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do:
        print(json.dumps({'predicted': predicted, 'measured': measured}[args.do[0]](int(args.do[1]))))
    elif args.table:
        table()
    else:
        compare(args.only)


if __name__ == '__main__':
    main()
