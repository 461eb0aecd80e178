"""What a training sample costs one core: the recipe's pipelines as they are, and as they were of the toolbox's transforms.

    python benchmarks/data.py [--root data/cityscapes] [--rounds 12]

Files of Cityscapes' and ADE20K's sizes are made from images in Cityscapes' layout, enlarged and with noise, so that they
take about as many bytes as theirs. The pipelines get the same files and random numbers, and take turns. Labels must be equal
to the last bit, and so must what the decoders give; the mean difference of colours is in the table. Times are of the CPU, so
that other processes hardly matter. The table goes to the terminal, the figures to benchmarks/results/data.json.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin


from mmseg_eomt.data import EoMTColorJitter, png
from mmseg_eomt.tables import markdown_table

ROOT = Path(__file__).parent
RESULTS = ROOT / 'results' / 'data.json'
NUM_FILES = 4
LABEL = ('gtFine', '_gtFine_labelTrainIds.png')
SETTINGS = {  # config, (width, height) of the files, their kind, noise in levels
    'Cityscapes 640': ('_base_/cityscapes_640.py', (2048, 1024), '.png', 0.5),
    'Cityscapes 1024': ('_base_/cityscapes_1024.py', (2048, 1024), '.png', 0.5),
    'ADE20K 512': ('_base_/ade20k_512.py', (683, 512), '.jpg', 1.0),
}
STEPS = {'LoadImageFromFile': 'image', 'LoadAnnotations': 'labels', 'PackSegInputs': 'packing'}  # others: augmentation
Step = tuple[str, Callable[[dict], dict]]


class ToolboxJitter(EoMTColorJitter):
    """The same changes by the toolbox's functions, as :class:`EoMTColorJitter` was before."""

    def transform(self, results: dict) -> dict:
        image = results['img']
        for kind, value in self.draw():
            if kind == 'hue' and value:
                hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
                hsv[..., 0] += np.uint8(value % 256)
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
            elif kind != 'hue':
                adjust = dict(brightness=mmcv.adjust_brightness, contrast=mmcv.adjust_contrast, saturation=mmcv.adjust_color)
                image = adjust[kind](image, value)
        results['img'] = image
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, default=Path('data/cityscapes'), help="images in Cityscapes' layout")
    parser.add_argument('--rounds', type=int, default=12, help='samples of each file')
    args = parser.parse_args()
    cv2.setNumThreads(0)  # as in the workers of a run
    init_default_scope('mmseg')
    warnings.filterwarnings('ignore', '.*reduce_zero_label')
    fast = png._decoder() is not None
    results = dict(machine=platform.processor() or platform.machine(), kornia_rs=fast, settings={})
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, size, kind, noise) in SETTINGS.items():
            files = make_files(args.root, Path(folder) / kind[1:], size, kind, noise)
            results['settings'][name] = measure(ROOT.parent / 'configs' / config, files, args.rounds, fast)
            results['settings'][name]['megabytes'] = round(
                statistics.mean(Path(i).stat().st_size for i, _ in files) / 1e6, 2
            )
        jpegs = [image for image, _ in make_files(args.root, Path(folder) / 'jpg', (683, 512), '.jpg', 1.0)]
        results['reduced_jpeg'] = reduced_decoding(jpegs, args.rounds)
    print('\n'.join(tables(results)))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')


def make_files(root: Path, folder: Path, size: tuple[int, int], kind: str, noise: float) -> list[tuple[str, str]]:
    """Images and label maps of a size, made of the first, second, … part of those below the root."""
    images = sorted((root / 'leftImg8bit' / 'train').glob('*/*_leftImg8bit.png'))
    if len(images) < NUM_FILES:
        raise SystemExit(
            f"{root} has {len(images)} training images in Cityscapes' layout, and it takes {NUM_FILES}: give --root."
        )
    folder.mkdir(exist_ok=True)
    rng, files = np.random.default_rng(0), []
    for i in range(NUM_FILES):
        source = images[i * len(images) // NUM_FILES]
        labels = root / LABEL[0] / 'train' / source.parent.name / source.name.replace('_leftImg8bit.png', LABEL[1])
        image = cv2.resize(cv2.imread(str(source)), size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        image = (image + rng.normal(0, noise, image.shape)).round().clip(0, 255).astype(np.uint8)
        paths = str(folder / f'{i}{kind}'), str(folder / f'{i}_labels.png')
        cv2.imwrite(paths[0], image, [cv2.IMWRITE_PNG_COMPRESSION, 6] if kind == '.png' else [cv2.IMWRITE_JPEG_QUALITY, 85])
        cv2.imwrite(paths[1], cv2.resize(cv2.imread(str(labels), -1), size, interpolation=cv2.INTER_NEAREST))
        files.append(paths)
    return files


def pipelines(config: Path) -> tuple[list[Step], list[Step]]:
    """The steps of before and of now."""
    now = list(Config.fromfile(config).train_dataloader.dataset.pipeline)
    (at,) = (i for i, step in enumerate(now) if step.type == 'EoMTAugment')
    size = now[at].crop_size
    five = [
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomResize', scale=size, ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='Pad', size=size, pad_val=dict(img=0, seg=255)),
        dict(type='RandomCrop', crop_size=size),
    ]
    before, now = (
        [(step['type'], TRANSFORMS.build(step)) for step in steps] for steps in ([*now[:at], *five, *now[at + 1 :]], now)
    )
    before.insert(at, ('EoMTColorJitter', ToolboxJitter()))
    return before, now


def sample(steps: list[Step], files: tuple[str, str], seed: int, zero: bool) -> tuple[dict, dict[str, float]]:
    """A sample, and the milliseconds of its parts."""
    np.random.seed(seed)
    results = dict(img_path=files[0], seg_map_path=files[1], seg_fields=[], reduce_zero_label=zero)
    parts = dict.fromkeys((*STEPS.values(), 'augmentation'), 0.0)
    for name, step in steps:
        start = time.process_time()
        results = step(results)
        parts[STEPS.get(name, 'augmentation')] += (time.process_time() - start) * 1e3
    return results, parts


def measure(config: Path, files: list[tuple[str, str]], rounds: int, fast: bool) -> dict:
    """Means over samples of each variant's parts, and the difference between before and now."""
    before, now = pipelines(config)
    zero = any(getattr(step, 'reduce_zero_label', False) for _, step in now)
    stock = mock.patch.object(png, '_decoder', lambda: None)
    variants: dict[str, list[dict[str, float]]] = {'before': [], 'now': [], **({'now, kornia-rs': []} if fast else {})}
    differences = []
    for seed in range(rounds * len(files) + 1):
        pair, drawn = files[seed % len(files)], {}
        for name, parts in variants.items():
            steps = before if name == 'before' else now
            if name == 'now, kornia-rs':
                drawn[name], taken = sample(steps, pair, seed, zero)
            else:
                with stock:
                    drawn[name], taken = sample(steps, pair, seed, zero)
            parts += [taken] if seed else []  # the first one warms up
        differences.append(_difference(*drawn.values()))
    table = {
        name: {part: round(statistics.mean(one[part] for one in parts), 2) for part in parts[0]}
        for name, parts in variants.items()
    }
    return dict(milliseconds=table, mean_difference=round(statistics.mean(differences), 3))


def _difference(before: dict, *now: dict) -> float:
    """Mean difference of colours in levels, once the labels are equal."""
    for one in now:
        labels = [each['data_samples'].gt_sem_seg.data for each in (before, one)]
        if not labels[0].equal(labels[1]) or not one['inputs'].equal(now[0]['inputs']):
            raise SystemExit('The pipelines differ in their labels or decoders in their images: nothing was measured.')
    return float((before['inputs'].int() - now[0]['inputs']).abs().float().mean())


def reduced_decoding(images: list[str], rounds: int) -> dict[str, float]:
    """Tried and not taken: JPEG files decoded at half their size where that is as large as what was drawn, or larger."""
    taken: dict[int, list[float]] = {cv2.IMREAD_COLOR: [], cv2.IMREAD_REDUCED_COLOR_2: []}
    for _ in range(rounds):
        for image in images:
            content = np.fromfile(image, np.uint8)
            for flag, times in taken.items():
                start = time.process_time()
                small = cv2.imdecode(content, flag)
                times.append((time.process_time() - start) * 1e3)
    full, half = map(statistics.median, taken.values())
    share = float(np.clip((small.shape[1] / 512 - 0.5) / 1.5, 0, 1))  # of the sizes from 0.5 to 2 crops of 512
    return dict(full=round(full, 2), half=round(half, 2), share=round(share, 3), saved=round(share * (full - half), 2))


def tables(results: dict) -> list[str]:
    rows = [
        [
            '',
            'file',
            'pipeline',
            'image',
            'labels',
            'augmentation',
            'packing',
            'ms',
            'images/s/core',
            'speed-up',
            'difference',
        ]
    ]
    for setting, figures in results['settings'].items():
        totals = {name: sum(parts.values()) for name, parts in figures['milliseconds'].items()}
        for name, parts in figures['milliseconds'].items():
            cells = [f'{parts[part]:.1f}' for part in ('image', 'labels', 'augmentation', 'packing')]
            speed = f'{totals["before"] / totals[name]:.2f}×'
            file, levels = f'{figures["megabytes"]} MB', figures['mean_difference'] if name != 'before' else 0
            total = totals[name]
            rows.append([setting, file, name, *cells, f'{total:.1f}', f'{1000 / total:.1f}', speed, f'{levels:.2f}'])
    jpeg = results['reduced_jpeg']
    return [
        *markdown_table(rows, left=(0, 2)),
        '',
        f'JPEG files decoded at half their size, not taken: {jpeg["half"]} ms for {jpeg["full"]} ms, possible in '
        f'{jpeg["share"]:.0%} of the samples, which would save {jpeg["saved"]} ms of a sample.',
    ]


if __name__ == '__main__':
    main()
