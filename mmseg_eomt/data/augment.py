"""The published recipe's augmentations of training images in one transform, at the cost of what the crop shows."""

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmseg_eomt.data.color_jitter import EoMTColorJitter, apply_changes, check_uint8


@TRANSFORMS.register_module()
class EoMTAugment(BaseTransform):
    """Change colours, flip, resize, pad and crop.

    It equals these transforms, and draws the same for the same seed::

        dict(type='EoMTColorJitter'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomResize', scale=crop_size, ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='Pad', size=crop_size, pad_val=dict(img=0, seg=255)),
        dict(type='RandomCrop', crop_size=crop_size),

    The crop and its labels are equal to the last bit where no colours change. Colours are changed in the crop alone, after
    resizing, with the contrast about the whole image's mean: equal to a rounding where nothing clips and the hue stays,
    and else where pixels that are averaged differ much.

    Args:
        crop_size: Rows and columns of the crop, or one number for both.
        ratio_range: Least and largest size of the image, as a factor of the largest that fits into the crop.
            Default: (0.5, 2.0).
        flip_prob: Probability of a horizontal flip. Default: 0.5.
        jitter: Arguments of :class:`EoMTColorJitter`, or None for no change of colours. Default: its defaults.
        pad_val: Padding of the image and label of padding. Default: black, and 255, which is ignored.

    Modifies ``img`` (H, W, 3), uint8 BGR, and the maps of ``seg_fields``; sets ``scale``, ``scale_factor``, ``keep_ratio``,
    ``flip``, ``flip_direction``, ``img_shape`` and ``pad_shape``.

    Raises:
        ValueError: If an argument is out of range, the image is not uint8, or a label map is of another size.

    Source: public implementation ``datasets/transforms.py``.
    """

    def __init__(
        self,
        crop_size: int | Sequence[int],
        ratio_range: Sequence[float] = (0.5, 2.0),
        flip_prob: float = 0.5,
        jitter: dict[str, Any] | None = dict(),  # noqa: B006, it is not changed
        pad_val: dict[str, int] = dict(img=0, seg=255),  # noqa: B006
    ) -> None:
        sides = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f'crop_size is one number of pixels or two, (rows, columns), got {crop_size!r}.')
        if len(ratio_range) != 2 or not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'ratio_range is two factors above 0, the smaller one first, got {ratio_range!r}.')
        if not 0 <= flip_prob <= 1:
            raise ValueError(f'flip_prob is from 0 to 1, got {flip_prob!r}.')
        if not all(isinstance(value, int) for value in pad_val.values()) or not pad_val.keys() <= {'img', 'seg'}:
            raise ValueError(f'pad_val is a whole number for img, seg or both, got {pad_val!r}.')
        self.crop_size, self.ratio_range, self.flip_prob = sides, tuple(ratio_range), flip_prob
        self.jitter = None if jitter is None else EoMTColorJitter(**jitter)
        self.pad_val = dict(img=0, seg=255) | pad_val

    def transform(self, results: dict) -> dict:
        """Make a crop of ``results['img']`` and of the label maps."""
        whole = results['img']
        check_uint8(whole, type(self).__name__)
        changes = self.jitter.draw() if self.jitter else []
        flip = bool(np.random.rand() < self.flip_prob)
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        scale = tuple(int(side * ratio) for side in self.crop_size[::-1])
        size = mmcv.rescale_size(whole.shape[1::-1], scale)
        top, left = (np.random.randint(0, max(side - crop, 0) + 1) for side, crop in zip(size[::-1], self.crop_size))
        window = slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1])

        image = _cut(whole, flip, size, window, cv2.INTER_LINEAR)
        results['img'] = self._pad(apply_changes(image, changes, whole), self.pad_val['img'])
        for name in results.get('seg_fields', []):
            labels = results[name]
            if labels.shape[:2] != whole.shape[:2]:
                raise ValueError(
                    f'{results.get("seg_map_path") or name} has {labels.shape[0]}×{labels.shape[1]} labels (height × width) '
                    f'and its image {whole.shape[0]}×{whole.shape[1]} pixels: they must be of one size.'
                )
            results[name] = self._pad(_cut(labels, flip, size, window, cv2.INTER_NEAREST), self.pad_val['seg'])
        results.update(
            scale=scale,
            scale_factor=tuple(new / old for new, old in zip(size, whole.shape[1::-1])),
            keep_ratio=True,
            flip=flip,
            flip_direction='horizontal' if flip else None,
            img_shape=self.crop_size,
            pad_shape=(*map(max, size[::-1], self.crop_size), whole.shape[2]),
        )
        return results

    def _pad(self, image: np.ndarray, value: int) -> np.ndarray:
        rows, columns = (crop - side for crop, side in zip(self.crop_size, image.shape))
        if not rows and not columns:
            return image
        return cv2.copyMakeBorder(image, 0, rows, 0, columns, cv2.BORDER_CONSTANT, value=(value,) * 3)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(crop_size={self.crop_size}, ratio_range={self.ratio_range}, flip_prob={self.flip_prob}, '
            f'jitter={self.jitter}, pad_val={self.pad_val})'
        )


def _cut(
    image: np.ndarray, flip: bool, size: tuple[int, int], window: tuple[slice, slice], interpolation: int
) -> np.ndarray:
    """Flip, resize to (width, height) and cut out, in this order: nearest neighbours are not symmetric.

    The whole is resized, also where the window shows a part: what OpenCV has for a part at the positions of the whole,
    ``warpAffine``, takes longer for half of an image than ``resize`` for all of it.
    """
    if flip:
        image = cv2.flip(image, 1)
    return cv2.resize(image, size, interpolation=interpolation)[window]
