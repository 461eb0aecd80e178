"""Image and mask files: what is wrong with one, in a sentence."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_TYPES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
BROKEN = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # the Exif tag, and its values for a picture that readers turn by 90°


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as the toolbox reads it, once it is sure that the file is whole.

    A PNG's checksums and a JPEG's end mark tell; only another kind of file, or a JPEG without its end, is decoded.

    Raises:
        ValueError: If the file is missing, empty, cut short or no image.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            exif = Image.Exif()
            if image.format == 'PNG':  # getexif would decode it
                exif.load(image.info.get('exif', b''))
                image.verify()
            else:
                if not (image.format in ('JPEG', 'MPO') and b'\xff\xd9' in _end_of(path)):
                    image.load()
                exif = image.getexif()
            if exif.get(ORIENTATION) in LYING:
                width, height = height, width
    except BROKEN as error:
        raise ValueError(_broken(path, 'image', error)) from error
    return height, width


def read_mask(path: str | Path) -> tuple[np.ndarray, list[int] | None]:
    """A mask file's values as they are stored, and its palette (r, g, b, r, g, …) if it has one.

    Returns:
        (H, W) for ids, or (H, W, 3) for colours; transparency is dropped.

    Raises:
        ValueError: If the file is missing, empty, cut short or no image.
    """
    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == 'P' else None
            mask = np.array(image)
    except BROKEN as error:
        raise ValueError(_broken(Path(path), 'mask', error)) from error
    if mask.ndim == 3 and mask.shape[2] == 2:  # grey with transparency
        mask = mask[..., :1].repeat(3, axis=2)
    return mask[..., :3] if mask.ndim == 3 else mask, palette


def ids_of(mask: np.ndarray) -> np.ndarray:
    """The different values of a mask (H, W)."""
    if mask.dtype == np.uint8:  # six times as fast as sorting
        return np.bincount(mask.ravel(), minlength=256).nonzero()[0]
    return np.unique(mask.astype(np.int64) if mask.dtype == bool else mask)


def _end_of(path: Path) -> bytes:
    """A file's last kilobyte."""
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return file.read()


def _broken(path: Path, kind: str, error: Exception) -> str:
    if not path.is_file():
        return f'{path}: the {kind} is missing'
    if not path.stat().st_size:
        return f'{path}: the {kind} is an empty file'
    return f'{path}: the {kind} cannot be read ({str(error).strip() or type(error).__name__})'
