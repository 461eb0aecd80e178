"""The published recipe's colour augmentation and evaluation size, as transforms of a pipeline."""

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets.transforms import Resize
from mmseg.registry import TRANSFORMS

LONGEST = 64  # windows: the class scores of an image are held at this size


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
        if results['img'].dtype != np.uint8:
            raise ValueError(
                f'EoMTColorJitter needs an image of uint8, got {results["img"].dtype}: remove to_float32 from '
                f'LoadImageFromFile.'
            )
        steps = [self._change_contrast, self._change_saturation, self._change_hue]
        if np.random.rand() < 0.5:
            steps = [*steps[1:], steps[0]]
        for step in (self._change_brightness, *steps):
            if np.random.rand() < 0.5:
                results['img'] = step(results['img'])
        return results

    def _change_brightness(self, img: np.ndarray) -> np.ndarray:
        return mmcv.adjust_brightness(img, 1 + np.random.uniform(-self.brightness, self.brightness))

    def _change_contrast(self, img: np.ndarray) -> np.ndarray:
        return mmcv.adjust_contrast(img, 1 + np.random.uniform(-self.contrast, self.contrast))

    def _change_saturation(self, img: np.ndarray) -> np.ndarray:
        return mmcv.adjust_color(img, 1 + np.random.uniform(-self.saturation, self.saturation))

    def _change_hue(self, img: np.ndarray) -> np.ndarray:
        turn = round(np.random.uniform(-self.hue, self.hue) / 360 * 256)  # 256 steps a turn, which overflow as an angle does
        if not turn:
            return img
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV_FULL)
        hsv[..., 0] += np.uint8(turn % 256)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(brightness={self.brightness}, contrast={self.contrast}, '
            f'saturation={self.saturation}, hue={self.hue})'
        )


@TRANSFORMS.register_module()
class EoMTResize(Resize):
    """Resize such that the image just covers a window: its shorter side is the window's, whatever the longer one is.

    Unlike the toolbox's ``Resize``, which fits an image into a longest and a shortest side, it has no longest side; it
    shrinks with antialiasing (Pillow's bilinear filter) and rounds a half to the even number.

    Args:
        size: Rows and columns of the window, or one number for both.

    Modifies ``img`` (H, W, 3), uint8, and label maps that are there already; sets ``img_shape``, ``scale``,
    ``scale_factor`` and ``keep_ratio``.

    Raises:
        ValueError: If the size is no size, or the image is not uint8 or longer than 64 windows.

    Source: public implementation ``training/lightning_module.py``.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f'size is one number of pixels or two, (rows, columns), got {size!r}.')
        super().__init__(scale=sides[::-1], backend='pillow')
        self.size = sides

    def transform(self, results: dict) -> dict:
        """Resize the image and what lies on it."""
        image, path = results['img'], results.get('img_path') or 'an image'
        if image.dtype != np.uint8:
            raise ValueError(
                f'EoMTResize needs an image of uint8, and {path} is {image.dtype}: remove to_float32 from '
                f'LoadImageFromFile, or use Resize.'
            )
        sides = image.shape[:2]
        factor = max(window / side for window, side in zip(self.size, sides))
        height, width = (round(side * factor) for side in sides)
        if max(height / self.size[0], width / self.size[1]) > LONGEST:
            raise ValueError(
                f'{path} has {sides[0]}×{sides[1]} pixels (height × width) and would be evaluated at {height}×{width}, '
                f'which is more than {LONGEST} windows of {self.size[0]}×{self.size[1]}: cut it, or use Resize with a scale.'
            )
        results['scale'] = (width, height)
        self._resize_img(results)
        self._resize_seg(results)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size})'
