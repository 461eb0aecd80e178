"""Corrupted images, as of ImageNet-C and Cityscapes-C, made as they are read.

Kinds and severities are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019; hendrycks/robustness, ImageNet-C/create_c/make_imagenet_c.py), which Kamann and Rother,
"Benchmarking the Robustness of Semantic Segmentation Models" (CVPR 2020), apply to Cityscapes at its full size.

- As published, but for the random numbers: gaussian_noise, shot_noise, impulse_noise, speckle_noise, defocus_blur,
  gaussian_blur, fog, brightness, contrast, saturate, jpeg_compression, pixelate. Fog's noise has the next power of two that
  covers the image, in place of 256 (as bethgelab/imagecorruptions).
- In their style, with the published parameters: motion_blur and snow, which ImageMagick blurs there.
- Not here: frost, which needs photographs; glass_blur, whose swaps of neighbours one after the other take minutes at
  2048×1024; zoom_blur and elastic_transform, which move things away from their labels; spatter.

Every function takes an image (H, W, 3) float64 in [0, 1], BGR, its parameters and a generator, and returns such an image,
whose values may be outside of [0, 1].
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

Array = np.ndarray
Random = np.random.Generator


def gaussian_noise(image: Array, scale: float, random: Random) -> Array:
    """Noise of a standard deviation."""
    return image + random.normal(0, scale, image.shape)


def shot_noise(image: Array, photons: float, random: Random) -> Array:
    """Poisson noise of a number of photons where a channel is 1."""
    return random.poisson(image * photons) / photons


def impulse_noise(image: Array, amount: float, random: Random) -> Array:
    """A fraction of the values becomes 0 or 1."""
    flipped, salt = random.random(image.shape) <= amount, random.random(image.shape) <= 0.5
    return np.where(flipped, salt, image)


def speckle_noise(image: Array, scale: float, random: Random) -> Array:
    """Noise in proportion to the value."""
    return image + image * random.normal(0, scale, image.shape)


def defocus_blur(image: Array, options: tuple[int, float], random: Random) -> Array:
    """The mean over a disk of a radius, whose edge is softened by a sigma."""
    radius, sigma = options
    reach, size = (8, 3) if radius <= 8 else (radius, 5)
    x, y = np.meshgrid(*[np.arange(-reach, reach + 1)] * 2)
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    return cv2.filter2D(image, -1, cv2.GaussianBlur(disk / disk.sum(), (size, size), sigma))


def motion_blur(image: Array, options: tuple[int, float], random: Random) -> Array:
    """A trail of a Gaussian that falls off to one side, along an angle within 45 degrees of the horizontal."""
    return _trail(image, *options, random.uniform(-45, 45))


def gaussian_blur(image: Array, sigma: float, random: Random) -> Array:
    """A Gaussian of a sigma, cut off at four of it."""
    size = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)


def fog(image: Array, options: tuple[float, float], random: Random) -> Array:
    """A cloud of a thickness; how much less its small parts are than the next larger ones is the decay."""
    thickness, decay = options
    height, width = image.shape[:2]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, random)[:height, :width, None]
    return (image + thickness * cloud) * image.max() / (image.max() + thickness)


def snow(image: Array, options: tuple[float, float, float, float, int, float, float], random: Random) -> Array:
    """Flakes in front of a brightened image: noise of a mean and scale, enlarged, cut off below a limit, and blurred."""
    mean, scale, zoom, limit, radius, sigma, kept = options
    height, width = image.shape[:2]
    small = random.normal(mean, scale, (int(np.ceil(height / zoom)), int(np.ceil(width / zoom))))
    flakes = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = np.where(flakes < limit, 0, flakes).clip(0, 1)
    flakes = _trail(flakes, radius, sigma, random.uniform(-135, -45))[..., None]
    grey = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY)[..., None]
    return kept * image + (1 - kept) * np.maximum(image, grey * 1.5 + 0.5) + flakes + flakes[::-1, ::-1]


def brightness(image: Array, added: float, random: Random) -> Array:
    """More of the value of HSV; hue and saturation stay."""
    value = image.max(2, keepdims=True)
    brighter = (value + added).clip(0, 1)
    return np.where(value > 0, image * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: Array, factor: float, random: Random) -> Array:
    """Closer to the mean of each channel."""
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def saturate(image: Array, options: tuple[float, float], random: Random) -> Array:
    """The saturation of HSV times a factor, and some added; grey then gets a hue of 0, red."""
    factor, added = options
    value = image.max(2, keepdims=True)
    lacking = value - image  # of each channel
    saturation = lacking.max(2, keepdims=True) / np.where(value > 0, value, 1)
    grey = saturation == 0
    lacking = np.where(grey, value * np.array([1, 1, 0]), lacking / np.where(grey, 1, saturation))  # of a saturation of 1
    return value - lacking * (saturation * factor + added).clip(0, 1)


def jpeg_compression(image: Array, quality: int, random: Random) -> Array:
    """JPEG of a quality."""
    _, content = cv2.imencode('.jpg', to_bytes(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR)) / 255


def pixelate(image: Array, factor: float, random: Random) -> Array:
    """Smaller by a factor, and as large again."""
    height, width = image.shape[:2]
    whole = Image.fromarray(to_bytes(image))
    small = whole.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def _trail(image: Array, radius: int, sigma: float, degrees: float) -> Array:
    """Mean over the pixels that lie along an angle to one side, with the weights of a Gaussian."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    x, y = np.rint(steps * np.cos(angle)).astype(int), np.rint(steps * np.sin(angle)).astype(int)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(kernel, (y + 2 * radius, x + 2 * radius), weights / weights.sum())
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def plasma(size: int, decay: float, random: Random) -> Array:
    """Fractal noise in [0, 1] by the diamond-square algorithm on a torus.

    Args:
        size: Of a side, a power of two.
        decay: By which the noise is divided at each smaller step.
        random: Generator.

    Returns:
        (size, size).
    """
    field, step, noise = np.zeros((size, size)), size, 100.0

    def filled(sums: Array) -> Array:
        return sums / 4 + noise * random.uniform(-noise, noise, sums.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = centres = filled(rows + np.roll(rows, -1, 1))
        field[::step, half::step] = filled(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        field[half::step, ::step] = filled(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, noise = half, noise / decay
    field -= field.min()
    return field / max(field.max(), 1e-12)


class Kind(NamedTuple):
    """A kind of corruption: its function, what it belongs to, and the parameters of the severities 1 to 5."""

    corrupt: Callable[[Array, Any, Random], Array]
    family: str
    parameters: tuple[Any, Any, Any, Any, Any]


SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
KINDS = {
    'gaussian_noise': Kind(gaussian_noise, 'noise', (0.08, 0.12, 0.18, 0.26, 0.38)),
    'shot_noise': Kind(shot_noise, 'noise', (60, 25, 12, 5, 3)),
    'impulse_noise': Kind(impulse_noise, 'noise', (0.03, 0.06, 0.09, 0.17, 0.27)),
    'speckle_noise': Kind(speckle_noise, 'noise', (0.15, 0.2, 0.35, 0.45, 0.6)),
    'defocus_blur': Kind(defocus_blur, 'blur', ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    'motion_blur': Kind(motion_blur, 'blur', ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    'gaussian_blur': Kind(gaussian_blur, 'blur', (1, 2, 3, 4, 6)),
    'fog': Kind(fog, 'weather', ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    'snow': Kind(snow, 'weather', SNOW),
    'brightness': Kind(brightness, 'weather', (0.1, 0.2, 0.3, 0.4, 0.5)),
    'contrast': Kind(contrast, 'digital', (0.4, 0.3, 0.2, 0.1, 0.05)),
    'saturate': Kind(saturate, 'digital', ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    'jpeg_compression': Kind(jpeg_compression, 'digital', (25, 18, 15, 10, 7)),
    'pixelate': Kind(pixelate, 'digital', (0.6, 0.5, 0.4, 0.3, 0.25)),
}
FAMILIES = tuple(dict.fromkeys(kind.family for kind in KINDS.values()))


def to_bytes(image: Array) -> Array:
    """Values in [0, 1] as uint8, cut off and rounded down, as published."""
    return (image.clip(0, 1) * 255 + 1e-6).astype(np.uint8)  # a byte stays the same


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Corrupt an image as ImageNet-C and Cityscapes-C do, right behind ``LoadImageFromFile``.

    What happens to an image depends on its file name, the kind, the severity and the seed alone: not on workers, processes
    or the order. For evaluation; published protocols do not train on these.

    Args:
        kind: Of :data:`KINDS`, such as ``'fog'``.
        severity: 1 to 5. Default: 3.
        seed: For other random numbers. Default: 0.

    Modifies ``img`` (H, W, 3), uint8 BGR.

    Raises:
        ValueError: If kind or severity are unknown, or the image is not uint8 with three channels.

    Source: see :mod:`mmseg_eomt.domains.corruptions`.
    """

    def __init__(self, kind: str, severity: int = 3, seed: int = 0) -> None:
        if kind not in KINDS:
            raise ValueError(f'kind of Corrupt is one of {", ".join(KINDS)}, got {kind!r}.')
        if severity not in range(1, 6):
            raise ValueError(f'severity of Corrupt is 1, 2, 3, 4 or 5, got {severity!r}.')
        self.kind, self.severity, self.seed = kind, severity, seed

    def transform(self, results: dict) -> dict:
        """Corrupt ``results['img']``."""
        image, name = results['img'], Path(results['img_path']).name
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f'Corrupt needs an image (H, W, 3) of uint8, and {name} is {image.shape} of {image.dtype}.')
        digest = hashlib.sha256(f'{self.seed}/{self.kind}/{self.severity}/{name}'.encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], 'little'))
        kind = KINDS[self.kind]
        results['img'] = to_bytes(kind.corrupt(image / 255, kind.parameters[self.severity - 1], random))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(kind={self.kind!r}, severity={self.severity}, seed={self.seed})'
