"""Outliers from no data: made shapes with the texture of other training images."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmseg_eomt.anomaly.outliers.compositing import Cutout
from mmseg_eomt.anomaly.outliers.sources import OUTLIER_SOURCES, OutlierSource, build_dataset, image_files
from mmseg_eomt.data.images import DEFAULT_READER, IMAGE_TYPES

SIDE = 256  # of a patch in pixels, before it is resized to its place
PART = 0.08, 0.5  # of an image's shorter side, that a patch's texture is cut from
NUM_ANGLES = 180  # of an outline


@OUTLIER_SOURCES.register_module()
class TrainingPatches(OutlierSource):
    """Blobs, polygons and boxes with the texture of other training images: shuffled, with other colours, in another light.

    Each texture is read from a file, and nothing of earlier images is kept: a resumed run draws what it would have drawn. By
    default the file lies in the folder of the image which the outlier is pasted into. Where that folder holds validation
    images too, and a list tells them apart, name the dataset.

    Args:
        images: Folder of the images for textures, with folders in it. Default: None, that of each image.
        dataset: A dataset of the toolbox instead, as in a dataloader; its images alone are used. Default: None.

    Raises:
        ValueError: If both are given, or there is no image.
    """

    def __init__(self, images: str | None = None, dataset: dict[str, Any] | None = None) -> None:
        if images is not None and dataset is not None:
            raise ValueError('TrainingPatches takes images or dataset, not both.')
        self.files: list[str] | None = None
        if images is not None:
            self.files = image_files(images)
        if dataset is not None:
            built = build_dataset(dataset, [], 'TrainingPatches')
            self.files = [built.get_data_info(i)['img_path'] for i in range(len(built))]
        if self.files == []:
            raise ValueError(f'TrainingPatches: there is no image in {images or dataset}.')

    def __len__(self) -> int:
        """Number of images, if they are known before the first one is seen."""
        return len(self.files or ())

    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout:
        """See :class:`.OutlierSource`."""
        files = _beside(image_path) if self.files is None else self.files
        others = [file for file in files if file != image_path] or list(files)
        image = DEFAULT_READER.read(Path(others[rng.integers(len(others))]))
        name, outline = SHAPES[rng.integers(len(SHAPES))]
        return Cutout(texture(image, rng), fill(outline(rng)), name)


def texture(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square patch that nobody has seen: part of an image in other colours, its tiles shuffled or not, lit from a side.

    Args:
        image: BGR (H, W, 3), uint8.
        rng: Source of all that is random in it.

    Returns:
        BGR (256, 256, 3), uint8.
    """
    side = max(2, round(min(image.shape[:2]) * rng.uniform(*PART)))
    top, left = (rng.integers(length - side + 1) for length in image.shape[:2])
    patch = cv2.resize(image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    patch = np.rot90(patch, int(rng.integers(4)))
    if rng.random() < 0.5:
        patch = _shuffled(patch, int(rng.choice([2, 4, 8])), rng)
    return _lit(_recoloured(patch, rng), rng)


def _shuffled(patch: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Its tiles, a number to a side, in another order."""
    side = SIDE // number
    tiles = patch.reshape(number, side, number, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    tiles = tiles[rng.permutation(len(tiles))].reshape(number, number, side, side, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, 3)


def _recoloured(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of another hue and contrast, and more or less on a coloured ground, since most of a street is grey."""
    shares = patch.astype(np.float32)[..., rng.permutation(3)] / 255
    mean, ground = shares.mean((0, 1)), rng.uniform(0, 0.7)
    return (shares - mean) * rng.uniform(0.8, 2.0) + (1 - ground) * mean + ground * rng.uniform(0.05, 0.95, 3)


def _lit(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brighter on one side than on the other."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4)
    across = np.linspace(-1, 1, SIDE)
    light = 1 + strength * (np.cos(angle) * across[None] + np.sin(angle) * across[:, None])
    return (255 * shares * light[..., None]).clip(0, 255).astype(np.uint8)


def fill(points: np.ndarray) -> np.ndarray:
    """The alpha (256, 256), uint8, of an outline (n, 2), as large as it fits, with smooth edges."""
    low, high = points.min(0), points.max(0)
    scaled = (points - (low + high) / 2) / (high - low).max() * (SIDE - 4) + (SIDE - 1) / 2
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    return cv2.fillPoly(alpha, [np.round(16 * scaled).astype(np.int32)], 255, cv2.LINE_AA, 4)


def blob(rng: np.random.Generator) -> np.ndarray:
    """A smooth closed outline: a circle with a few waves along it, stretched."""
    angles = np.linspace(0, 2 * np.pi, NUM_ANGLES, endpoint=False)
    radius = np.ones(NUM_ANGLES)
    for waves in range(2, 7):
        radius += rng.uniform(0, 0.5 / waves) * np.cos(waves * angles + rng.uniform(0, 2 * np.pi))
    return _stretched(radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1), rng)


def polygon(rng: np.random.Generator) -> np.ndarray:
    """Three to nine corners around a middle; it may have dents."""
    number = int(rng.integers(3, 10))
    angles = (np.arange(number) + rng.uniform(-0.3, 0.3, number)) * 2 * np.pi / number
    radius = rng.uniform(0.5, 1, number)
    return _stretched(radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1), rng)


def box(rng: np.random.Generator) -> np.ndarray:
    """An upright rectangle."""
    return _stretched(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float), rng)


def _stretched(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return points * (1, np.exp(rng.uniform(-0.9, 0.9)))


SHAPES: tuple[tuple[str, Callable[[np.random.Generator], np.ndarray]], ...] = (
    ('blob', blob),
    ('polygon', polygon),
    ('box', box),
)


@cache
def _files_of(folder: str) -> tuple[str, ...]:
    """Image files in a folder, in order; read once per process."""
    return tuple(os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.lower().endswith(IMAGE_TYPES))


def _beside(image_path: str | None) -> tuple[str, ...]:
    """Image files in the folder of an image."""
    folder = os.path.dirname(image_path or '')
    if not os.path.isdir(folder or '.') or image_path is None:
        raise ValueError(f'TrainingPatches finds no folder around the image {image_path}: give images=FOLDER.')
    return _files_of(folder)
