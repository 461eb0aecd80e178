"""What PasteOutliers does to the training images of a config, as a sheet and in numbers: to look at before training.

    python tools/preview_outliers.py CONFIG [--out outliers.png] [--number 12] [--images 100] [--cfg-options …]

The training pipeline runs up to PasteOutliers, with a probability of 1. The sheet shows images with the contours of their
outliers; the numbers are of more images: how many outliers found a place, how large they are, how many pixels they take.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmengine.config import Config, DictAction
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image
from tqdm import tqdm

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.visualization import sheet
from mmseg_eomt.whole import check_writable, whole_file

NAME = 'PasteOutliers'
CONTOUR = (255, 0, 255)
MAX_NAMES = 12
PICTURES = ('.png', '.jpg', '.jpeg', '.webp')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config with PasteOutliers in its training pipeline')
    parser.add_argument('--out', type=Path, default=Path('outliers.png'), help='the sheet (outliers.png)')
    parser.add_argument('--number', type=int, default=12, help='images on the sheet (12)')
    parser.add_argument('--images', type=int, default=100, help='images that are counted (100)')
    parser.add_argument('--seed', type=int, default=0, help='of the choice of images and of all that is random (0)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='settings of the config, as key=value')
    args = parser.parse_args(argv)
    if args.number < 1 or args.images < 1:
        parser.error('--number and --images are numbers from 1 on')
    if args.out.suffix.lower() not in PICTURES:
        parser.error(f'--out is a picture ({", ".join(PICTURES)}), got {args.out}')
    with errors_in_a_sentence('preview_outliers'):
        check_writable(args.out.parent)
        preview(args)
    print(f'Wrote {args.out}')


class Pasted(NamedTuple):
    """What became of one image.

    Attributes:
        picture: RGB (H, W, 3), with the outliers' contours.
        title: Its file's name.
        placed: As :class:`.PasteOutliers` notes them, each with its ``share`` of the image's height.
        failed: Number of outliers without a place.
        pixels: Fraction that is outlier.
    """

    picture: np.ndarray
    title: str
    placed: list[dict[str, Any]]
    failed: int
    pixels: float


def preview(args: argparse.Namespace) -> None:
    """Paste, count and draw."""
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    register_all_modules()
    dataset, found = cut_pipelines(config.train_dataloader.dataset.to_dict())
    if not found:
        raise ValueError(
            f'The training pipeline of {args.config} has no {NAME}: add '
            f"dict(type='{NAME}', source=dict(type='TrainingPatches')) after LoadAnnotations."
        )
    np.random.seed(args.seed)
    images: list[Pasted] = []
    shown: list[Pasted] = []
    others: list[Pasted] = []
    for one in tqdm(paste(dataset, args.images, found[0].get('label', 254)), 'Pasting', args.images, delay=2):
        kept = shown if one.placed else others
        if len(kept) < args.number:
            kept.append(one)
        images.append(one._replace(picture=one.picture[:0, :0].copy()))  # of hundreds, the memory would hold gigabytes
    report(images, found[0])
    shown = shown or others
    picture = sheet([one.picture for one in shown], [one.title for one in shown])
    with whole_file(args.out) as new:
        Image.fromarray(picture).save(new)


def cut_pipelines(dataset: Any) -> tuple[Any, list[dict]]:
    """A dataset's config with its pipelines, however it is wrapped, ended at PasteOutliers, which always pastes.

    Returns:
        The new config, and the configs of PasteOutliers in it.
    """
    if isinstance(dataset, list):
        parts = [cut_pipelines(part) for part in dataset]
        return [part for part, _ in parts], [one for _, found in parts for one in found]
    if not isinstance(dataset, dict):
        return dataset, []
    new, found = {}, []
    for key, value in dataset.items():
        places = [i for i, step in enumerate(value) if _is_paste(step)] if key == 'pipeline' else []
        if places:
            found.append(value[places[0]])
            new[key] = [*value[: places[0]], {**value[places[0]], 'prob': 1.0}]
        else:
            new[key], inner = cut_pipelines(value)
            found += inner
    return new, found


def _is_paste(step: Any) -> bool:
    return isinstance(step, dict) and step.get('type') == NAME


def paste(config: dict, number: int, label: int) -> Iterator[Pasted]:
    """Training images in random order, with outliers; again from the first one where there are fewer than the number."""
    dataset = DATASETS.build(config)
    if not len(dataset):
        raise ValueError('The training dataset holds no image: check its data_root and data_prefix.')
    order = np.random.permutation(len(dataset))
    for i in range(number):
        sample = dataset[int(order[i % len(order)])]
        labels, outliers = sample['gt_seg_map'], sample.get('outliers')
        if outliers is None:  # of a dataset in the concatenation that pastes nothing
            outliers = dict(placed=[], failed=0)
        placed = [dict(one, share=one['side'] / len(labels)) for one in outliers['placed']]
        picture = with_contours(sample['img'][..., ::-1], labels == label)
        title = f'{Path(sample.get("img_path") or "").name}: {", ".join(one["name"] for one in placed)}'
        yield Pasted(picture, title[:80], placed, outliers['failed'], float((labels == label).mean()))


def with_contours(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An RGB image (H, W, 3) with the outlines of a mask (H, W) around what it covers."""
    picture = np.ascontiguousarray(image)
    width = max(1, round(len(image) / 250))
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2 + width)
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, CONTOUR, width)
    return picture


def report(images: list[Pasted], paste_config: dict) -> None:
    """Print the numbers."""
    placed = [one for image in images for one in image.placed]
    failed = sum(image.failed for image in images)
    on_ground = sum(one['on_ground'] for one in placed)
    print(f'Source: {paste_config["source"]}')
    print(f'Images: {len(images)}, of which {sum(not image.placed for image in images)} without an outlier')
    print(f'Outliers placed: {len(placed)} ({on_ground} on the ground, {len(placed) - on_ground} anywhere)')
    print(f'Outliers not placed: {failed} ({failed / max(1, failed + len(placed)):.1%})')
    if not placed:
        print('Nothing could be placed: check where, size and min_pixels, and the labels of the images.')
        return
    shares = np.array([one['share'] for one in placed])
    low, middle, high = np.percentile(shares, (0, 50, 100))
    print(f'Longer side, of the image height: {low:.1%} to {high:.1%}, median {middle:.1%}')
    print(f'Pixels that are outlier, in these images: {np.mean([image.pixels for image in images]):.2%}')
    names = Counter(one['name'] for one in placed).most_common()
    more = f', and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    print('Kinds: ' + ', '.join(f'{name} {number}' for name, number in names[:MAX_NAMES]) + more)
