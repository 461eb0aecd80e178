"""Export a segmentor, adapters merged, as one graph from image to class scores, and check and time it against PyTorch.

python tools/export.py CONFIG CHECKPOINT OUT.onnx    for ONNX Runtime and TensorRT
python tools/export.py CONFIG CHECKPOINT OUT.pt2     for torch.export.load
python tools/export.py CONFIG CHECKPOINT OUT.xml     for OpenVINO; with --int8 IMAGES in 8 bits
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
from torch.export import ExportedProgram

from mmseg_eomt import deploy
from mmseg_eomt import export as exporting
from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.scores import NAMES
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.tasks import load_tasks
from mmseg_eomt.tasks.graph import ImageToTaskScores
from mmseg_eomt.tasks.loading import task_names

RUNTIMES = {'.onnx': 'ONNX Runtime (CPUExecutionProvider)', '.pt2': 'torch.export', '.xml': 'OpenVINO (CPU)'}
INT8_IMAGES, COMPARED = 40, 5  # at most so many images quantize a model; every fifth of them compares it instead


def export(args: argparse.Namespace) -> None:
    """Load, export, write, check and time."""
    out = Path(args.out)
    if out.suffix not in RUNTIMES:
        raise ValueError(f'OUT must end in .onnx (ONNX), .pt2 (torch.export) or .xml (OpenVINO), got {args.out}.')
    if args.onnxruntime and out.suffix != '.onnx':
        raise ValueError(f'--onnxruntime is for a file that ends in .onnx, got {args.out}: omit it, or name such a file.')
    for file in (out, *exporting.weights_beside(out)):
        if file.exists():
            raise ValueError(f'{file} is there already: name another, or delete it.')
    check_int8(args, out.suffix)
    if out.suffix == '.onnx':
        exporting.check_onnx_packages()
    if out.suffix == '.xml':
        deploy.check_openvino_packages(bool(args.int8))
    module = make_module(args)
    if out.suffix == '.xml' and args.size is None:
        args.size = list(module.training_size)  # OpenVINO does not convert an open one
    size = 'any' if args.size is None else '{}×{}'.format(*args.size)
    print(
        f'exporting {args.checkpoint or ", ".join(module.output_names)}: batch {args.batch or "any"}, size {size}',
        flush=True,
    )
    start = time.perf_counter()
    program = exporting.to_program(module, args.size, args.batch)
    images = exporting.example_images(module, args.size, args.batch)
    with exporting.whole_model(out) as new:  # takes its place once it is checked
        run = write(module, program, new, args.onnxruntime)
        written = sum(path.stat().st_size for path in new.parent.iterdir()) / 1e6
        print(f'{out}: {written:,.1f} MB in {time.perf_counter() - start:.0f} s, checking', flush=True)
        apart = exporting.difference(module, run, images)
        shapes = ', '.join('×'.join(map(str, image.shape)) for image in images)
        print(f'largest difference {apart:.1e} of the largest score, on random images {shapes}', flush=True)
        if not apart <= args.tolerance:
            raise ValueError(
                f'The scores differ by {apart:.1e}, more than --tolerance {args.tolerance:g}: {out} is not kept.'
            )
        if args.int8:
            run = write_int8(args, module, program, new)
    ours, other = exporting.times(module, run, images[0])
    print(
        f'PyTorch {ours:.1f} ms per image, {RUNTIMES[out.suffix]} {other:.1f} ms, speed-up {ours / other:.2f}: medians of '
        f'5 runs at {"×".join(map(str, images[0].shape))}, {torch.get_num_threads()} threads'
    )


def check_int8(args: argparse.Namespace, kind: str) -> None:
    """Refuse what --int8 does not go with."""
    if args.int8 and kind != '.xml':
        raise ValueError(f'--int8 is for OpenVINO, a name that ends in .xml, got {args.out}.')
    if args.int8 and (args.tasks or args.anomaly):
        raise ValueError('--int8 compares the classes of one model, and takes neither --tasks nor --anomaly.')
    if args.int8 and not Path(args.int8).is_dir():
        raise ValueError(f'--int8 takes a folder of images like those that the model will see, and {args.int8} is none.')


def write(module: exporting.ImageToScores, program: ExportedProgram, new: Path, for_onnxruntime: bool) -> exporting.Run:
    """Write a program in the kind of its file, and load what was written."""
    if new.suffix == '.onnx':
        exporting.save_onnx(program, new, module.metadata(), module.output_names, for_onnxruntime)
        return exporting.load_onnx(new)
    if new.suffix == '.xml':
        deploy.save_openvino(deploy.to_openvino(program, module.metadata(), module.output_names), new)
        return deploy.load_openvino(new)
    exporting.save_program(program, new, module.metadata())
    return exporting.load_program(new)


def write_int8(
    args: argparse.Namespace, module: exporting.ImageToScores, program: ExportedProgram, new: Path
) -> exporting.Run:
    """Write the quantized model, and compare its label maps with the model's, of images that it was not quantized with."""
    images = deploy.read_images(args.int8, args.size or module.training_size, INT8_IMAGES, args.batch or 1)
    compared = images[COMPARED - 1 :: COMPARED]
    print(f'quantizing with {len(images) - len(compared)} of {len(images)} images in {args.int8}', flush=True)
    known = [image for i, image in enumerate(images) if i % COMPARED != COMPARED - 1]
    model = deploy.quantize(deploy.to_openvino(program, module.metadata(), module.output_names), known)
    deploy.save_openvino(model, new)
    run = deploy.load_openvino(new)
    with torch.no_grad():
        same = deploy.agreement(run, module, compared)
    size = new.stat().st_size + new.with_suffix('.bin').stat().st_size
    print(
        f'int8: {size / 1e6:,.1f} MB, {same:.2%} of the pixels of the other {len(compared)} get the same class', flush=True
    )
    if not same >= args.agreement:
        raise ValueError(
            f'Of the pixels {same:.2%} get the same class, less than --agreement {args.agreement:g}: {args.out} is not kept.'
        )
    return run


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
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='fix the size (default: any, in whole patches; OpenVINO: of training)',
    )
    parser.add_argument('--batch', type=int, help='fix the number of images (default: any)')
    parser.add_argument(
        '--onnxruntime', action='store_true', help="ONNX Runtime's own operators: faster on a CPU, read by nothing else"
    )
    parser.add_argument('--tolerance', type=float, default=1e-3, help='largest difference over the largest score (1e-3)')
    parser.add_argument(
        '--anomaly', nargs='+', default=[], metavar='SCORE', help=f'a second output: {", ".join(NAMES)}; rba@0.5 (none)'
    )
    parser.add_argument('--int8', metavar='IMAGES', help='quantize for OpenVINO, with the images of this folder (no)')
    parser.add_argument(
        '--agreement', type=float, default=0.95, help='least fraction of pixels with the same class in int8 (0.95)'
    )
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help="of a config with tasks: names, or 'all'")
    args = parser.parse_args(argv)
    with errors_in_a_sentence('export'):
        export(args)
