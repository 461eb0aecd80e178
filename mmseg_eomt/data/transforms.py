"""The published recipe's evaluation size, as a transform of a pipeline."""

import numpy as np
from mmseg.datasets.transforms import Resize
from mmseg.registry import TRANSFORMS

LONGEST = 64  # windows: the class scores of an image are held at this size


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
