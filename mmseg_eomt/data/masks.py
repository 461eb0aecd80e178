"""Mask files, and pairs of an image and its mask: reading one, or saying in a sentence what is wrong with it."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmseg_eomt.data.images import DEFAULT_READER, SIDEWAYS, TURNED, ImageInfo, Reader, broken, inspect_image, orientation_of

REMOVE_TAG = 'remove the tag of the image (exiftool -Orientation= FILE)'


class Pair(NamedTuple):
    """An image and its mask: what :func:`inspect_image` and :func:`read_mask` give."""

    image: ImageInfo
    values: np.ndarray
    palette: list[int] | None


def read_mask(path: str | Path) -> tuple[np.ndarray, list[int] | None]:
    """A mask file's values as they are stored, and its palette (r, g, b, r, g, …) if it has one.

    Returns:
        (H, W) for ids, or (H, W, 3) for colours; transparency is dropped.

    Raises:
        ValueError: If the file is missing, empty, cut short, no image, saved with loss, or has an Exif orientation, which
            viewers apply and the reader of masks does not.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            lossy = _is_lossy(image, path)
            tag = 1 if image.format == 'TIFF' else orientation_of(image)  # Pillow applies it to a TIFF
            palette = image.getpalette() if image.mode == 'P' else None
            mask = np.array(image)
    except Exception as error:  # as in Reader.read
        raise ValueError(broken(path, 'mask', error)) from error
    if lossy:
        raise ValueError(f'{path}: the mask is saved with loss ({lossy}), which changes values near edges: save it as PNG')
    if tag in TURNED:
        raise ValueError(
            f'{path}: the mask carries an Exif orientation ({tag}), which viewers apply and the reader of masks does not: '
            f'save it as it is to be read, without the tag'
        )
    if mask.ndim == 3 and mask.shape[2] == 2:  # grey with transparency
        mask = mask[..., :1].repeat(3, axis=2)
    return mask[..., :3] if mask.ndim == 3 else mask, palette


def read_pair(image: str | Path, mask: str | Path, reader: Reader = DEFAULT_READER) -> Pair:
    """Look at an image and read its mask.

    Raises:
        ValueError: If a file cannot be used or their sizes differ, in a sentence that begins with the file.
    """
    info = inspect_image(image, reader)
    values, palette = read_mask(mask)
    if values.shape[:2] != info.size:
        shown = '{1}×{0}'.format(*values.shape), '{1}×{0}'.format(*info.size)
        turned = ''
        if info.orientation in SIDEWAYS:
            turned = (
                f' once its Exif orientation ({info.orientation}) is applied, as the reader does; masks are read as '
                f'stored. If the mask was drawn on the stored pixels, {REMOVE_TAG}'
            )
        raise ValueError(f'{mask}: the mask is {shown[0]} pixels, but its image {image} is {shown[1]}{turned}')
    return Pair(info, values, palette)


def describe_turned(images: list[tuple[str, ImageInfo]]) -> str:
    """What to know of images that the reader turns or mirrors, while their masks are read as stored."""
    blind = [image for image, (size, orientation) in images if orientation not in SIDEWAYS or size[0] == size[1]]
    text = f'{len(images)} images carry an Exif orientation, which the reader applies, while masks are read as stored'
    if not blind:
        return f'{text}; these masks have the size of the turned image (the first: {images[0][0]}).'
    return (
        f'{text}. For {len(blind)} of them no size shows whether the mask fits (the first: {blind[0]}): look at both. If '
        f'the mask was drawn on the stored pixels, {REMOVE_TAG}.'
    )


def count_values(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a mask (H, W), in order, and the number of pixels of each."""
    if mask.dtype == np.uint8:  # six times as fast as sorting
        counts = np.bincount(mask.ravel(), minlength=256)
        return counts.nonzero()[0], counts[counts > 0]
    return np.unique(mask.astype(np.uint8) if mask.dtype == bool else mask, return_counts=True)


def lost_in_a_list(name: str) -> bool:
    """Whether a name cannot stand in an ``ann_file``: the toolbox strips its lines."""
    return name != name.strip() or '\n' in name


def _is_lossy(image: Image.Image, path: Path) -> str:
    """Name of the compression if it changes values, else nothing."""
    if image.format in ('JPEG', 'MPO'):
        return 'JPEG'
    if image.format == 'TIFF' and 'jpeg' in str(image.info.get('compression')):
        return 'JPEG in TIFF'
    if image.format == 'WEBP':
        with path.open('rb') as file:
            file.seek(12)
            while len(chunk := file.read(8)) == 8:
                if chunk[:4] in (b'VP8 ', b'ANMF'):
                    return 'WebP'
                if chunk[:4] == b'VP8L':
                    return ''
                length = int.from_bytes(chunk[4:], 'little')
                file.seek(length + length % 2, io.SEEK_CUR)
    return ''
