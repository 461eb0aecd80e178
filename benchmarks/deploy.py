#!/usr/bin/env python
"""The fastest way to run a model on a CPU, and what it costs in accuracy.

    python benchmarks/deploy.py [--rounds 3] [--side 512] [--batches 1 4] [--ways "OpenVINO" …] [--no-accuracy]

Time: a ViT-S with random weights from image to class scores, in turns with Hugging Face's EoMT of equal weights, whose
scores are compared before anything is timed. Medians over rounds after one that does not count. Each way takes as many
threads as PyTorch.

Accuracy: a small ViT (192×6×3, patch size 16), trained from random weights on the daytime frames of CamVid at half their
size, is run in each way on the 101 frames of the validation split. Its checkpoint is kept in work_dirs/deploy; --fresh
trains anew. Quantizing takes 16 frames of the training split. Needs CamVid at data/cityscapes, as
benchmarks/adapters_camvid.py says.

torchao's int8 with dynamic ranges is left out: without torch.compile it took 40 s to build and run once.

Prints a table, and writes benchmarks/results/deploy.json.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

os.environ['CUDA_VISIBLE_DEVICES'] = ''  # mmengine picks its device when it is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import cv2
import torch
from torch import Tensor, nn
from torch.export import Dim

from benchmarks import adapters_camvid as camvid
from benchmarks.candidates import check_scores, example, models
from benchmarks.deploy_ways import QUANTIZED, WAYS, Model, lacking
from mmseg_eomt.deploy import read_images
from mmseg_eomt.export import ImageToScores, Run, to_program
from mmseg_eomt.inference import load_model
from mmseg_eomt.tables import markdown_table

RESULTS = Path(__file__).with_name('results') / 'deploy.json'
WORK_DIR = Path('work_dirs/deploy')
THEIRS = "Hugging Face's EoMT"
LIMIT = 1e-4  # of the largest score, for a way in fp32
ITERS, QUERIES, POINTS, PATCH, NUM_IMAGES = 1000, 25, 512, 16, 16
SIZE = (192, 240)  # CamVid's half, in whole patches


class Scores(nn.Module):
    """Images, normalised, to class scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.scores(image)


# time


def timed(side: int, batches: list[int], names: list[str], rounds: int) -> list[dict]:
    """Seconds per image of each way at each batch."""
    ours, theirs = models('small', side, 'cpu')
    print(
        f'ViT-S, {side}×{side}: scores differ from {THEIRS} by {check_scores(ours, theirs, example(side, 1, "cpu")[0]):.1e}'
    )
    theirs.model.attn_mask_probs.zero_()
    module = Scores(ours.eval())
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    program = torch.export.export(module, (example(side, 2, 'cpu')[0],), dynamic_shapes=dict(image={0: Dim('batch')}))
    seen = [example(side, 1, 'cpu')[0] + 0.1 * i for i in range(2)]  # time does not depend on them
    model, rows = Model(module, program, seen), []
    for batch in batches:
        image = example(side, batch, 'cpu')[0]
        expected = module(image)
        runs: dict[str, Run] = {THEIRS: theirs.eval().scores}
        for name in names:
            start = time.perf_counter()
            runs[name] = WAYS[name](model, batch)
            error = float((runs[name](image) - expected).abs().max() / expected.abs().max())
            print(f'batch {batch}, {name}: differs by {error:.1e}, {time.perf_counter() - start:.0f} s to build', flush=True)
            if name not in QUANTIZED and not error < LIMIT:
                sys.exit(f'{name}: the class scores differ by {error:.1e} of the largest: there is nothing to time.')
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(image)
                taken[name].append((time.perf_counter() - start) / batch)
        for name, seconds in taken.items():
            rows.append(dict(way=name, side=side, batch=batch, seconds=round(statistics.median(seconds[1:]), 4)))
    return rows


# accuracy


def checkpoint() -> tuple[str, Path]:
    """Config and checkpoint of the small model; trained where it is not kept."""
    camvid.WORK_DIR, camvid.PATCH = WORK_DIR, PATCH
    folder = WORK_DIR / 'model'
    file = folder / f'iter_{ITERS}.pth'
    if not (folder / 'figures.json').is_file():
        print(f'training the small model, {ITERS} iterations', flush=True)
        camvid.write_lists()
        config = camvid.base_config(folder, None, ITERS)
        config.model.decode_head.update(num_queries=QUERIES, num_points=POINTS)
        figures = camvid.train_and_evaluate(config)
        config.test_dataloader = config.val_dataloader
        config.dump(folder / 'config.py')
        (folder / 'figures.json').write_text(json.dumps(figures))
    return str(folder / 'config.py'), file


def accuracy(names: list[str]) -> list[dict]:
    """MIoU of each way, over the classes that occur in the labels, and the pixels that get eager's class."""
    with torch.enable_grad():
        config, weights = checkpoint()
    module = ImageToScores(load_model(config, str(weights), 'cpu'))
    model = Model(module, to_program(module, SIZE), read_images(camvid.DATA / 'leftImg8bit/train', SIZE, NUM_IMAGES))
    files = sorted((camvid.DATA / 'leftImg8bit' / camvid.DAY_VAL).glob('*_leftImg8bit.png'))
    images = read_images(files[0].parent, SIZE, len(files))
    labels = [_label(file) for file in files]
    rows, first = [], None
    for name in names:
        run = WAYS[name](model, 1)
        found = [run(image).argmax(1) for image in images]
        first = first or found
        same = statistics.mean(float((a == b).float().mean()) for a, b in zip(found, first))
        rows.append(dict(way=name, mIoU=round(_miou(found, labels), 3), same=round(same, 5)))
        print(f'{name}: mIoU {rows[-1]["mIoU"]:.2f} %, {same:.2%} of the pixels get the same class as in eager', flush=True)
    return rows


def _label(file: Path) -> Tensor:
    path = str(file).replace('leftImg8bit.png', 'gtFine_labelTrainIds.png').replace('leftImg8bit', 'gtFine')
    return torch.from_numpy(cv2.imread(path, cv2.IMREAD_UNCHANGED))


def _miou(found: list[Tensor], labels: list[Tensor]) -> float:
    counts = torch.zeros(19 * 19, dtype=torch.long)
    for predicted, label in zip(found, labels):
        predicted = nn.functional.interpolate(predicted[None].float(), label.shape)[0, 0].long()
        seen = label < 19
        counts += torch.bincount(19 * label[seen].long() + predicted[seen], minlength=19 * 19)
    counts = counts.view(19, 19).double()
    hits = counts.diagonal()
    return float((100 * hits / (counts.sum(0) + counts.sum(1) - hits))[counts.sum(1) > 0].mean())


def table(times: list[dict], quality: list[dict]) -> list[str]:
    """One row for each way."""
    batches = list(dict.fromkeys(row['batch'] for row in times))
    seconds = {(row['way'], row['batch']): row['seconds'] for row in times}
    found = {row['way']: row for row in quality}
    heads = [cell for batch in batches for cell in (f'batch {batch}, ms per image', 'speed-up')]
    rows = [['way', *heads, *(['mIoU, %', 'change, points', 'same class, %'] if quality else [])]]
    for name in dict.fromkeys(row['way'] for row in times):
        cells = [name]
        for batch in batches:
            own = seconds[name, batch]
            cells += [f'{1000 * own:,.0f}', f'{seconds[THEIRS, batch] / own:.2f}×']
        if quality and name in found:
            row = found[name]
            cells += [f'{row["mIoU"]:.2f}', f'{row["mIoU"] - quality[0]["mIoU"]:+.2f}', f'{100 * row["same"]:.2f}']
        elif quality:
            cells += ['', '', '']
        rows.append(cells)
    return markdown_table(rows)


@torch.no_grad()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--side', type=int, default=512, help='a multiple of 16 (512)')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 4])
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=WAYS, metavar='WAY', help=', '.join(WAYS))
    parser.add_argument('--no-accuracy', action='store_true', help='time alone')
    parser.add_argument('--fresh', action='store_true', help=f'delete {WORK_DIR}')
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(WORK_DIR, ignore_errors=True)
    names = []
    for name in args.ways:
        reason = lacking(name)
        if reason:
            print(f'{name}: skipped, {reason}')
        else:
            names.append(name)
    quality = [] if args.no_accuracy else accuracy(list(dict.fromkeys(['PyTorch, eager', *names])))
    times = timed(args.side, args.batches, names, args.rounds)
    print('\n' + '\n'.join(table(times, quality)))
    packages = [name for name in ('torch', 'transformers', 'torchao', 'onnxruntime', 'openvino', 'nncf') if _has(name)]
    results = dict(
        device=f'{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads',
        rounds=args.rounds,
        versions={name: metadata.version(name) for name in packages},
        times=times,
        accuracy=quality,
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nWritten to {args.out}.')


def _has(package: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


if __name__ == '__main__':
    main()
