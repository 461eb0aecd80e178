"""The published recipe's colour augmentation, as a transform of a pipeline."""

from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = (0.114, 0.587, 0.299)  # of blue, green and red, as OpenCV has them
SAMPLE = 1 << 16  # pixels that stand for an image where a change of its mean is asked for


class Change(NamedTuple):
    """One drawn change of colours.

    Attributes:
        kind: ``'brightness'``, ``'contrast'``, ``'saturation'`` or ``'hue'``.
        value: Its factor; of the hue, 256 steps a turn.
    """

    kind: str
    value: float


@TRANSFORMS.register_module()
class EoMTColorJitter(BaseTransform):
    """Change brightness, contrast, saturation and hue, each with a probability of one half.

    Brightness comes first; contrast before or after saturation and hue, with equal probability. Unlike the toolbox's
    ``PhotoMetricDistortion``, brightness is a factor, contrast is about the mean and hue turns by up to 18 degrees, not 36.

    Args:
        brightness: Largest change of the factor, from 1. Default: 32 / 255.
        contrast: Largest change of the factor, from 1. Default: 0.5.
        saturation: Largest change of the factor, from 1. Default: 0.5.
        hue: Largest turn in degrees. Default: 18.

    Modifies ``img`` (H, W, 3), uint8 BGR.

    Raises:
        ValueError: If a factor could become negative, or the image is not uint8.

    Source: public implementation ``datasets/transforms.py``.
    """

    def __init__(
        self, brightness: float = 32 / 255, contrast: float = 0.5, saturation: float = 0.5, hue: float = 18.0
    ) -> None:
        if not all(0 <= value <= 1 for value in (brightness, contrast, saturation)) or not 0 <= hue <= 180:
            raise ValueError(
                'brightness, contrast and saturation must be from 0 to 1 and hue from 0 to 180 degrees, got '
                f'{brightness}, {contrast}, {saturation} and {hue}.'
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``."""
        check_uint8(results['img'], type(self).__name__)
        results['img'] = apply_changes(results['img'], self.draw())
        return results

    def draw(self) -> list[Change]:
        """Draw what is to be changed, in its order."""
        contrast = ('contrast', self.contrast)
        kinds = [contrast, ('saturation', self.saturation), ('hue', self.hue)]
        if np.random.rand() < 0.5:
            kinds = [*kinds[1:], contrast]
        changes = []
        for kind, largest in (('brightness', self.brightness), *kinds):
            if np.random.rand() < 0.5:
                drawn = np.random.uniform(-largest, largest)
                changes.append(Change(kind, round(drawn / 360 * 256) if kind == 'hue' else 1 + drawn))
        return changes

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(brightness={self.brightness}, contrast={self.contrast}, '
            f'saturation={self.saturation}, hue={self.hue})'
        )


def check_uint8(image: np.ndarray, name: str) -> None:
    """Refuse an image that a transform of this name cannot take.

    Raises:
        ValueError: If the image is not uint8, or not of three channels.
    """
    if image.dtype != np.uint8:
        raise ValueError(f'{name} needs an image of uint8, got {image.dtype}: remove to_float32 from LoadImageFromFile.')
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name} needs an image (H, W, 3), got {image.shape}: LoadImageFromFile needs color_type='color'.")


def apply_changes(image: np.ndarray, changes: list[Change], whole: np.ndarray | None = None) -> np.ndarray:
    """Change the colours of an image, or of a part of one.

    Contrast is about the mean of the whole image, with what has changed before. Where the image is a part, that is the mean
    of all pixels of the whole, moved by as much as a sample of them is moved by the changes before: exact to rounding where
    contrast comes first, and without an error that does not average out elsewhere.

    Args:
        image: (H, W, 3), uint8 BGR.
        changes: In their order.
        whole: What the image is a part of, or its enlarged or reduced part. Default: the image is the whole.

    Returns:
        (H, W, 3), uint8 BGR.
    """
    means = _means_for_contrast(changes, whole) if whole is not None else None
    for change in changes:
        mean = 0.0
        if change.kind == 'contrast':
            mean = means if means is not None else float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[0])
        image = _apply(image, change, mean)
    return image


def _means_for_contrast(changes: list[Change], whole: np.ndarray) -> float | None:
    """The mean of the whole image's grey where contrast is changed; None where it is not."""
    kinds = [change.kind for change in changes]
    if 'contrast' not in kinds:
        return None
    before = changes[: kinds.index('contrast')]
    mean = _grey(whole)
    if before:
        stride = max(1, int((whole.shape[0] * whole.shape[1] / SAMPLE) ** 0.5))
        sample = np.ascontiguousarray(whole[::stride, ::stride])
        mean += _grey(apply_changes(sample, before)) - _grey(sample)
    return mean


def _grey(image: np.ndarray) -> float:
    return float(np.dot(cv2.mean(image)[:3], GREY))


def _apply(image: np.ndarray, change: Change, mean: float) -> np.ndarray:
    """One change; contrast about a mean. Each equals the toolbox's function, which computes with 32-bit floats."""
    if change.kind == 'brightness':
        return cv2.LUT(image, mmcv.adjust_brightness(RAMP, change.value).ravel())
    if change.kind == 'contrast':
        table = cv2.addWeighted(
            RAMP.astype(np.float32), change.value, np.full_like(RAMP, round(mean), np.float32), 1 - change.value, 0
        )
        return cv2.LUT(image, table.clip(0, 255).astype(np.uint8).ravel())
    if change.kind == 'saturation':
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return cv2.addWeighted(image, change.value, grey, 1 - change.value, 0)
    if not change.value:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hsv[..., 0] += np.uint8(change.value % 256)  # overflows as an angle does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)
