"""Damage to an image or a mask."""

import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from faults import damage_bytes

Kind = Callable[[Path, random.Random], None]
ORIENTATION = 0x0112


def _array(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def _write(path: Path, values: np.ndarray | Image.Image, kind: str = 'PNG', **options) -> None:
    """Under the file's name, whatever that ends in: readers go by the content."""
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, kind, **options)


def resized(path: Path, draw: random.Random) -> None:
    """Another size."""
    with Image.open(path) as image:
        width, height = image.size
        size = draw.choice([(width - 1, height), (height, width), (width * 2, height * 2), (width, 1), (1, height), (1, 1)])
        _write(path, image.resize(size, Image.Resampling.NEAREST))


def lying(path: Path, draw: random.Random) -> None:
    """An Exif orientation that turns by 90°."""
    exif = Image.Exif()
    exif[ORIENTATION] = draw.choice([5, 6, 7, 8])
    with Image.open(path) as image:
        _write(path, image.copy(), draw.choice(['PNG', 'JPEG']), exif=exif)


def upside_down(path: Path, draw: random.Random) -> None:
    """An Exif orientation that keeps the size."""
    exif = Image.Exif()
    exif[ORIENTATION] = draw.choice([2, 3, 4])
    with Image.open(path) as image:
        _write(path, image.copy(), exif=exif)


def fractions(path: Path, draw: random.Random) -> None:
    """A TIFF of numbers with fractions."""
    values = _array(path)
    _write(path, (values[..., 0] if values.ndim == 3 else values).astype(np.float32) + 0.5, 'TIFF')


def _compressed(path: Path, draw: random.Random) -> None:
    with Image.open(path) as image:
        _write(
            path,
            image.copy(),
            'TIFF',
            compression=draw.choice(['zstd', 'lzma', 'tiff_lzw', 'tiff_adobe_deflate', 'packbits']),
        )


def compressed(path: Path, draw: random.Random) -> None:
    """A TIFF of some compression, under its old name."""
    _compressed(path, draw)


def broken_jpeg(path: Path, draw: random.Random) -> None:
    """A JPEG that is cut short."""
    with Image.open(path) as image:
        _write(path, image.convert('RGB'), 'JPEG')
    damage_bytes.truncate(path, draw)


def with_loss(path: Path, draw: random.Random) -> None:
    """Saved as JPEG or lossy WebP, under its old name."""
    with Image.open(path) as image:
        copy = image.convert('RGB') if draw.random() < 0.5 else image.convert('L')
    _write(path, copy, draw.choice(['JPEG', 'WEBP']), quality=60)


def unknown_id(path: Path, draw: random.Random) -> None:
    """An id that is no class."""
    values = _array(path).copy()
    values[draw.randrange(values.shape[0]), draw.randrange(values.shape[1])] = draw.choice([19, 20, 77, 200, 254])
    _write(path, values)


def negative_id(path: Path, draw: random.Random) -> None:
    """An id below 0."""
    values = _array(path).astype(np.int32)
    values[0, 0] = draw.choice([-1, -2, -255])
    _write(path, values, 'TIFF')


def large_id(path: Path, draw: random.Random) -> None:
    """An id of two bytes whose lower one is a class."""
    values = _array(path).astype(np.uint16)
    values[0, 0] = draw.choice([256, 257, 512 + 3, 65534])
    _write(path, values)


def colours(path: Path, draw: random.Random) -> None:
    """A colour for each class."""
    table = np.random.RandomState(draw.randrange(100)).randint(0, 256, (256, 3)).astype(np.uint8)
    _write(path, table[_array(path)])


def three_channels(path: Path, draw: random.Random) -> None:
    """Ids in three equal channels."""
    _write(path, np.stack([_array(path)] * 3, -1))


def photograph(path: Path, draw: random.Random) -> None:
    """Noise of three channels."""
    _write(path, np.frombuffer(draw.randbytes(64 * 128 * 3), np.uint8).reshape(64, 128, 3))


def gigantic(path: Path, draw: random.Random) -> None:
    """A PNG whose header tells of 100,000 × 100,000 pixels, with few in it."""
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, 'big') * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    path.write_bytes(data)


def two_bytes(path: Path, draw: random.Random) -> None:
    """Harmless: the same ids in two bytes."""
    _write(path, _array(path).astype(np.uint16))


def palette(path: Path, draw: random.Random) -> None:
    """Harmless: the same ids with a palette."""
    image = Image.fromarray(_array(path)).convert('P')
    image.putdata(_array(path).flatten().tolist())
    image.putpalette(list(draw.randbytes(768)))
    _write(path, image)


def remark(path: Path, draw: random.Random) -> None:
    """Harmless: a text in the file, and other compression."""
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', 'drawn by hand')
    with Image.open(path) as image:
        _write(path, image.copy(), pnginfo=info, compress_level=draw.randrange(10))


def upright(path: Path, draw: random.Random) -> None:
    """Harmless: an Exif orientation that changes nothing."""
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    with Image.open(path) as image:
        _write(path, image.copy(), exif=exif)


def opaque(path: Path, draw: random.Random) -> None:
    """Harmless: a fourth channel that hides nothing."""
    with Image.open(path) as image:
        _write(path, image.convert('RGBA'))


BYTES: tuple[Kind, ...] = (*damage_bytes.LOST, *damage_bytes.WITHIN)
IMAGES: tuple[Kind, ...] = (*[resized, lying, fractions, compressed, broken_jpeg, gigantic] * 2, *BYTES)
MASKS: tuple[Kind, ...] = (
    *[resized, lying, upside_down, fractions, with_loss, broken_jpeg, gigantic],
    *[unknown_id, unknown_id, negative_id, large_id, colours, three_channels, photograph],
    *BYTES,
)
HARMLESS_IMAGES: tuple[Kind, ...] = (remark, upright, opaque, damage_bytes.link)
HARMLESS_MASKS: tuple[Kind, ...] = (two_bytes, palette, remark, upright, damage_bytes.link)
