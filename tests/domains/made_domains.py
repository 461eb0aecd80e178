"""Tiny sets of other domains, written as they are downloaded, with the train ids that their labels stand for."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE = (32, 48)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the 19 classes, in order
SYNTHIA_IDS = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 17: 12, 8: 13, 19: 15, 12: 17, 11: 18}
SYNTHIA_IDS |= {16: 9, 18: 14, 20: 16}  # which are said to occur nowhere
VISTAS_V1 = {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10}
VISTAS_V1 |= {19: 11, 20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18}


def draw(ids: int, seed: int) -> np.ndarray:
    """Ids (H, W), each of those below a number; blocks of one id are 4 pixels wide."""
    return (
        np.random.default_rng(seed).integers(0, ids, (SIZE[0] // 4, SIZE[1] // 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    )


def write_image(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def write_label(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


def mapped(ids: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """What the ids stand for, one by one."""
    return np.array([[table.get(int(value), 255) for value in row] for row in ids], np.uint8)


def train_ids(seed: int) -> np.ndarray:
    """Of 19 classes and 255."""
    ids = draw(20, seed)
    return np.where(ids == 19, 255, ids).astype(np.uint8)


def pairs(root: Path, names: list[tuple[str, str]], seed: int = 0) -> dict[str, np.ndarray]:
    """Images, and labels of train ids, by their paths; the labels by the path of their image."""
    labels = {}
    for i, (image, label) in enumerate(names, seed):
        labels[str(root / image)] = train_ids(i)
        write_image(root / image, i)
        write_label(root / label, labels[str(root / image)])
    return labels


def bdd100k(root: Path) -> dict[str, np.ndarray]:
    names = ('7d06fefd-f7be05a6', '7d128593-0ccfea4c')
    return pairs(root, [(f'images/10k/val/{name}.jpg', f'labels/sem_seg/masks/val/{name}.png') for name in names], 10)


def cityscapes(root: Path) -> dict[str, np.ndarray]:
    names = [f'{city}/{city}_00000{i}_000019' for i, city in enumerate(('frankfurt', 'munster', 'lindau'))]
    folders = ('leftImg8bit/val', 'gtFine/val')
    kinds = ('leftImg8bit', 'gtFine_labelTrainIds')
    return pairs(root, [tuple(f'{f}/{name}_{kind}.png' for f, kind in zip(folders, kinds)) for name in names], 20)


def acdc(root: Path) -> dict[str, np.ndarray]:
    names = [f'{weather}/val/GOPR0475/GOPR0475_frame_00004{i}' for i, weather in enumerate(('fog', 'night', 'rain', 'snow'))]
    return pairs(root, [(f'rgb_anon/{name}_rgb_anon.png', f'gt/{name}_gt_labelTrainIds.png') for name in names], 30)


def dark_zurich(root: Path) -> dict[str, np.ndarray]:
    name = 'val/night/GOPR0356/GOPR0356_frame_000321'
    return pairs(root, [(f'rgb_anon/{name}_rgb_anon.png', f'gt/{name}_gt_labelTrainIds.png')], 40)


def nighttime_driving(root: Path) -> dict[str, np.ndarray]:
    image = 'leftImg8bit/test/night/0_leftImg8bit.png'
    return pairs(root, [(image, 'gtCoarse_daytime_trainvaltest/test/night/0_gtCoarse_labelTrainIds.png')], 50)


def urbansyn(root: Path) -> dict[str, np.ndarray]:
    labels = {}
    for i in (1, 2):
        ids = draw(20, i)
        write_image(root / f'rgb/rgb_{i:04}.png', i)
        write_label(root / f'ss/ss_{i:04}.png', ids)
        labels[str(root / f'rgb/rgb_{i:04}.png')] = np.where(ids == 19, 255, ids)
    return labels


def gta5(root: Path) -> dict[str, np.ndarray]:
    """Palettes of Cityscapes' ids 0 to 34."""
    table = {old: new for new, old in enumerate(CITYSCAPES_IDS)}
    labels = {}
    for i in (1, 2, 3):
        ids = draw(35, i)
        write_image(root / f'images/{i:05}.png', i)
        write_label(root / f'labels/{i:05}.png', ids, palette=True)
        labels[str(root / f'images/{i:05}.png')] = mapped(ids, table)
    return labels


def synthia(root: Path) -> dict[str, np.ndarray]:
    """16-bit colours: the class in the first channel, the instance in the second."""
    labels = {}
    (root / 'GT/LABELS').mkdir(parents=True)
    for i in (1, 2):
        ids = draw(23, i)
        channels = [np.zeros_like(ids, np.uint16), np.full_like(ids, 700 + i, np.uint16), ids.astype(np.uint16)]
        cv2.imwrite(str(root / f'GT/LABELS/{i:07}.png'), cv2.merge(channels))  # OpenCV's order is B, G, R
        write_image(root / f'RGB/{i:07}.png', i)
        labels[str(root / f'RGB/{i:07}.png')] = mapped(ids, SYNTHIA_IDS)
    return labels


def mapillary(root: Path) -> dict[str, np.ndarray]:
    """Palettes of version 1.2's 66 ids."""
    labels = {}
    for split, name in (('training', '0035fkbjWljhaftpVM37-g'), ('validation', '0DGKMeWmXbQpfnNRpS3oJg')):
        ids = draw(66, len(split))
        write_image(root / split / 'images' / f'{name}.jpg', len(split))
        write_label(root / split / 'labels' / f'{name}.png', ids, palette=True)
        labels[str(root / split / 'images' / f'{name}.jpg')] = mapped(ids, VISTAS_V1)
    return labels


# folder below data/, and what writes it; the last three have labels to convert
MADE: dict[str, tuple[str, Callable[[Path], dict[str, np.ndarray]]]] = {
    'cityscapes': ('cityscapes', cityscapes),
    'bdd100k': ('bdd100k', bdd100k),
    'acdc': ('acdc', acdc),
    'dark_zurich': ('dark_zurich', dark_zurich),
    'nighttime_driving': ('NighttimeDrivingTest', nighttime_driving),
    'urbansyn': ('urbansyn', urbansyn),
    'gta5': ('gta', gta5),
    'synthia': ('synthia', synthia),
    'mapillary': ('mapillary', mapillary),
}
