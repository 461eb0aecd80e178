"""Export a segmentor, adapters merged, as one graph from image to class scores, and check and time it against PyTorch.

python tools/export.py CONFIG CHECKPOINT OUT.onnx    for ONNX Runtime and TensorRT
python tools/export.py CONFIG CHECKPOINT OUT.pt2     for torch.export.load
python tools/export.py CONFIG OUT.onnx --tasks all   for several tasks at once, of a config that names their checkpoints

Input: image (B, 3, H, W), float32 RGB from 0 to 255. Output: scores (B, K, H, W), and with --anomaly SCORE… also
anomaly (B, E, H, W); with --tasks, scores_NAME (B, K, H, W) of each. See docs/deploy.md for its use.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmseg.apis import init_model

from mmseg_eomt import export as exporting
from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.scores import NAMES
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.tasks import load_tasks
from mmseg_eomt.tasks.graph import ImageToTaskScores
from mmseg_eomt.tasks.loading import task_names


def export(args: argparse.Namespace) -> None:
    """Load, export, write, check and time."""
    out = Path(args.out)
    kind = out.suffix
    if kind not in ('.onnx', '.pt2'):
        raise ValueError(f'OUT must end in .onnx (ONNX) or .pt2 (torch.export), got {args.out}.')
    if args.onnxruntime and kind != '.onnx':
        raise ValueError(f'--onnxruntime is for a file that ends in .onnx, got {args.out}: omit it, or name such a file.')
    if out.exists():
        raise ValueError(f'{out} is there already: name another, or delete it.')
    if kind == '.onnx':
        exporting.check_onnx_packages()
    module = make_module(args)
    size = 'any' if args.size is None else '{}×{}'.format(*args.size)
    print(
        f'exporting {args.checkpoint or ", ".join(module.output_names)}: batch {args.batch or "any"}, size {size}',
        flush=True,
    )
    start = time.perf_counter()
    program = exporting.to_program(module, args.size, args.batch)
    load = exporting.load_onnx if kind == '.onnx' else exporting.load_program
    images = exporting.example_images(module, args.size, args.batch)
    with exporting.whole_model(out) as new:  # takes its place once it is checked
        if kind == '.onnx':
            exporting.save_onnx(program, new, module.metadata(), module.output_names, args.onnxruntime)
        else:
            exporting.save_program(program, new, module.metadata())
        written = sum(path.stat().st_size for path in new.parent.iterdir()) / 1e6
        print(f'{out}: {written:,.1f} MB in {time.perf_counter() - start:.0f} s, checking', flush=True)
        run = load(new)
        apart = exporting.difference(module, run, images)
        shapes = ', '.join('×'.join(map(str, image.shape)) for image in images)
        print(f'largest difference {apart:.1e} of the largest score, on random images {shapes}', flush=True)
        if not apart <= args.tolerance:
            raise ValueError(
                f'The scores differ by {apart:.1e}, more than --tolerance {args.tolerance:g}: {out} is not kept.'
            )
    ours, other = exporting.times(module, run, images[0])
    name = 'ONNX Runtime (CPUExecutionProvider)' if kind == '.onnx' else 'torch.export'
    print(
        f'PyTorch {ours:.1f} ms per image, {name} {other:.1f} ms, speed-up {ours / other:.2f}: medians of 5 runs at '
        f'{"×".join(map(str, images[0].shape))}, {torch.get_num_threads()} threads'
    )


def make_module(args: argparse.Namespace) -> exporting.ImageToScores:
    """The model, or the model of some tasks, to export."""
    if args.tasks:
        if args.checkpoint or args.anomaly:
            raise ValueError('--tasks takes the checkpoints of the config, and no anomaly scores: omit the others.')
        names = task_names(Config.fromfile(args.config), args.tasks)
        return ImageToTaskScores(load_tasks(args.config, names, device='cpu'))
    if args.checkpoint is None:
        raise ValueError('CHECKPOINT is missing: it is given between CONFIG and OUT, unless --tasks names tasks.')
    config = with_anomaly_scores(Config.fromfile(args.config), args.anomaly) if args.anomaly else args.config
    return exporting.ImageToScores(init_model(config, args.checkpoint, device='cpu'), args.anomaly)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?')
    parser.add_argument('out', metavar='OUT')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='fix the size (default: any, in whole patches)'
    )
    parser.add_argument('--batch', type=int, help='fix the number of images (default: any)')
    parser.add_argument(
        '--onnxruntime', action='store_true', help="ONNX Runtime's own operators: faster on a CPU, read by nothing else"
    )
    parser.add_argument('--tolerance', type=float, default=1e-3, help='largest difference over the largest score (1e-3)')
    parser.add_argument(
        '--anomaly', nargs='+', default=[], metavar='SCORE', help=f'a second output: {", ".join(NAMES)}; rba@0.5 (none)'
    )
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help="of a config with tasks: names, or 'all'")
    args = parser.parse_args(argv)
    with errors_in_a_sentence('export'):
        export(args)
