#!/usr/bin/env python
"""Inference of exported files against PyTorch: time, and the largest difference of their scores.

    python benchmarks/export.py [--sides 512 1024] [--rounds 4]

A ViT-S with 100 queries, 19 classes and random weights is exported for one image of a fixed size, as tools/export.py does:
as ONNX in the standard's operators, as ONNX with ONNX Runtime's own (--onnxruntime), and as a program of torch.export.
Scores are compared before anything is timed. Each time is a median over rounds in which all take turns in one process, on
as many threads as PyTorch uses, after one round that does not count. Memory is the most that a call takes above what the
process has before it; ONNX Runtime keeps its memory between calls, so that its figure is what the first calls
left out. Prints a table and writes results/export.json.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import mmseg_eomt  # noqa: F401  registers EoMT
from benchmarks.meter import Meter
from mmseg_eomt import export
from mmseg_eomt.tables import markdown_table

RESULTS = Path(__file__).with_name('results')
HEAD = ['size', 'run by', 'time', 'memory', 'speed-up over PyTorch', 'largest difference']
LIMIT = 1e-4  # of the largest score


def model(side: int) -> torch.nn.Module:
    """A segmentor with random weights."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    segmentor = MODELS.build(
        dict(
            type='EoMTSegmentor',
            data_preprocessor=dict(type='SegDataPreProcessor', mean=mean, std=std, bgr_to_rgb=True),
            backbone=dict(type='EoMTViT', arch='small', img_size=side),
            decode_head=dict(type='EoMTHead', arch='small', num_classes=19),
            test_cfg=dict(mode='whole'),
        )
    )
    for parameter in segmentor.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return segmentor.eval()


def exported(module: export.ImageToScores, side: int, folder: Path) -> dict[str, export.Run]:
    """What was exported, by name."""
    program = export.to_program(module, (side, side), 1)
    export.save_program(program, folder / 'model.pt2', {})
    runs: dict[str, export.Run] = {'torch.export': export.load_program(folder / 'model.pt2')}
    for name, own in (('ONNX', False), ('ONNX, --onnxruntime', True)):
        export.save_onnx(program, folder / f'{own}.onnx', {}, for_onnxruntime=own)
        runs[name] = export.load_onnx(folder / f'{own}.onnx')
    return runs


@torch.no_grad()
def measure(meter: Meter, side: int) -> list[dict]:
    """Rows of one image size."""
    module = export.ImageToScores(model(side))
    (image,) = export.example_images(module, (side, side), 1)
    with tempfile.TemporaryDirectory() as folder:
        runs = exported(module, side, Path(folder))
    apart = {name: export.difference(module, run, [image]) for name, run in runs.items()}
    if not max(apart.values()) < LIMIT:
        sys.exit(f'The scores differ by {apart} of the largest: there is nothing to time.')
    taken = meter({'PyTorch': lambda: module(image), **{name: (lambda run=run: run(image)) for name, run in runs.items()}})
    ours = taken['PyTorch']['seconds']
    return [
        dict(side=side, name=name, apart=apart.get(name), speed=round(ours / figures['seconds'], 2), **figures)
        for name, figures in taken.items()
    ]


def cells(row: dict) -> list[str]:
    """A row of the table."""
    apart = '' if row['apart'] is None else f'{row["apart"]:.0e}'
    size, seconds, memory = f'{row["side"]}×{row["side"]}', f'{row["seconds"]:.2f} s', f'{row["peak_mb"]:,} MB'
    return [size, row['name'], seconds, memory, f'{row["speed"]}×', apart]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sides', type=int, nargs='+', default=[512, 1024], help='multiples of 16')
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args()
    meter = Meter('cpu', args.rounds)
    rows = [row for side in args.sides for row in measure(meter, side)]
    results = dict(
        device=f'{platform.machine()} CPU, {torch.get_num_threads()} threads',
        rounds=args.rounds,
        versions={package: metadata.version(package) for package in ('torch', 'onnx', 'onnxruntime')},
        rows=rows,
    )
    print(results['device'], results['versions'])
    print('\n'.join(markdown_table([HEAD, *map(cells, rows)], left=(0, 1))))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'export.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
