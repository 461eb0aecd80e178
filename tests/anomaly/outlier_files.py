"""Made files of outliers: cut-outs, COCO annotations, masks, a dataset."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

RED, GREEN = (0, 0, 255), (0, 255, 0)  # BGR


def disc(height: int, width: int, radius: int, centre: tuple[int, int] | None = None) -> np.ndarray:
    """A mask (H, W), bool, of a disc at a row and column."""
    row, column = centre or (height // 2, width // 2)
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows - row, columns - column) < radius


def write_cutouts(folder: Path, side: int = 40) -> Path:
    """A green disc and a green box, transparent around it; the transparent pixels are red, which must never be seen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in (
        ('disc.png', disc(side, side, side // 2)),
        ('box.webp', np.pad(np.ones((side - 8, side - 8)), 4) > 0),
    ):
        pixels = np.zeros((side, side, 4), np.uint8)
        pixels[..., :3] = np.where(mask[..., None], GREEN, RED)
        pixels[..., 3] = 255 * mask
        Image.fromarray(pixels[..., [2, 1, 0, 3]]).save(folder / name, lossless=True)
    return folder


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask, column by column, nothing first."""
    flat = np.concatenate(([0], mask.T.ravel().astype(int), [-1]))
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate(([0], ends))).tolist()


def compressed(runs: list[int]) -> str:
    """Run lengths as COCO compresses them."""
    text = ''
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
            if not more:
                break
    return text


def write_coco(folder: Path, crowd: bool = True) -> tuple[Path, Path]:
    """Two images of 60×80 and COCO annotations with polygons, run lengths and a crowd; the objects are green on red."""
    images, annotations = folder / 'train2017', folder / 'instances_train2017.json'
    images.mkdir(parents=True)
    shapes = {'zebra': disc(60, 80, 18, (20, 20)), 'kite': disc(60, 80, 18, (35, 55)), 'car': np.zeros((60, 80), bool)}
    shapes['car'][5:15, 5:75] = True
    for name in ('000000000001.png', '000000000002.png'):
        cv2.imwrite(str(images / name), np.where((shapes['zebra'] | shapes['kite'])[..., None], GREEN, RED))
    zebra = cv2.findContours(shapes['zebra'].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
    kite = runs_of(shapes['kite'])
    segmentations = [
        (1, 24, [zebra.ravel().tolist()], 0),
        (1, 38, dict(size=[60, 80], counts=compressed(kite)), 0),
        (2, 38, dict(size=[60, 80], counts=kite), 0),
        (2, 3, [[5, 5, 75, 5, 75, 15, 5, 15]], 0),
        *([(2, 24, dict(size=[60, 80], counts=[0, 60 * 80]), 1)] if crowd else []),
    ]
    content = dict(
        info={},
        licenses=[],
        images=[dict(id=i, file_name=f'{i:012d}.png', height=60, width=80) for i in (1, 2)],
        categories=[dict(id=i, name=name, supercategory='thing') for i, name in ((3, 'car'), (24, 'zebra'), (38, 'kite'))],
        annotations=[
            dict(
                id=i, image_id=image, category_id=category, segmentation=mask, iscrowd=crowd, area=1000.0, bbox=[0, 0, 9, 9]
            )
            for i, (image, category, mask, crowd) in enumerate(segmentations)
        ],
    )
    annotations.write_text(json.dumps(content))
    return images, annotations


def write_masked(folder: Path, values: tuple[int, ...] = (1, 7, 255)) -> Path:
    """Images of 60×80 with masks of the same name; there is a disc of each value, and it is green."""
    for part in ('images', 'masks'):
        (folder / part).mkdir(parents=True)
    labels = np.zeros((60, 80), np.uint8)
    for value, centre in zip(values, ((15, 15), (40, 40), (15, 60))):
        labels[disc(60, 80, 12, centre)] = value
    for stem in ('a', 'b'):
        cv2.imwrite(str(folder / 'images' / f'{stem}.png'), np.where(labels[..., None] > 0, GREEN, RED))
        cv2.imwrite(str(folder / 'masks' / f'{stem}.png'), labels)
    return folder


def write_ade20k(folder: Path) -> dict:
    """A dataset in ADE20K's layout with a chair (20 in its files, 19 once 0 is ignored) and a car; its config."""
    labels = np.zeros((60, 80), np.uint8)
    labels[disc(60, 80, 15, (30, 20))] = 20
    labels[disc(60, 80, 15, (30, 60))] = 21
    for part, suffix, content in (
        ('images', 'jpg', np.where(labels[..., None] == 20, GREEN, RED)),
        ('annotations', 'png', labels),
    ):
        (folder / part / 'training').mkdir(parents=True)
        cv2.imwrite(str(folder / part / 'training' / f'ADE_train_00000001.{suffix}'), content)
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    return dict(type='ADE20KDataset', data_root=str(folder), data_prefix=prefix)
