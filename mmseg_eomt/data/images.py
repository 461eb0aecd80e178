"""Image files: those in a folder, whether the reader of a run takes one, and its size there."""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

IMAGE_TYPES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
ORIENTATION, TURNED, SIDEWAYS = (
    0x0112,
    range(2, 9),
    range(5, 9),
)  # the Exif tag; its values that change an image, or its sides
MAX_PIXELS = 1 << 30  # that OpenCV reads
SURE_PIXELS, SURE_SIDE = MAX_PIXELS >> 2, 1 << 18  # far from OpenCV's limits
RARE_JPEG = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # lossless, hierarchical, arithmetic
# Pillow, which reads the masks in a run, takes 179 megapixels for an attack on a server; a dataset is the user's own
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


@dataclass(frozen=True)
class Reader:
    """How a run reads its images: two options of LoadImageFromFile.

    Attributes:
        flag: Its ``color_type``.
        backend: Its ``imdecode_backend``.
    """

    flag: str = 'color'
    backend: str = 'cv2'

    def read(self, path: Path) -> np.ndarray:
        """An image (H, W, 3), BGR, or as the flag says.

        Raises:
            ValueError: If the file is missing or empty, or this reader cannot read it.
        """
        try:
            image = self.decode(path.read_bytes())
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            raise ValueError(broken(path, 'image', error)) from error
        if image is None:
            raise ValueError(broken(path, 'image', f'{self.backend}, the reader of the run, does not take {_kind(path)}'))
        return image

    def decode(self, content: bytes) -> np.ndarray | None:
        """An image from a file's content; None where OpenCV cannot read it."""
        return mmcv.imfrombytes(content, flag=self.flag, backend=self.backend)


DEFAULT_READER = Reader()  # with the options that all configs of the toolbox have


class ImageInfo(NamedTuple):
    """What a look at an image file gives.

    Attributes:
        size: Height and width as the run reads it.
        orientation: The Exif orientation that the reader applies, 2 to 8; 1 if there is none.
    """

    size: tuple[int, int]
    orientation: int


def inspect_image(path: str | Path, reader: Reader = DEFAULT_READER) -> ImageInfo:
    """Size and orientation of an image as a run reads it, once it is sure that it does.

    A PNG's checksums, or a JPEG's head and end mark, tell; every other kind is decoded by the reader itself.

    Raises:
        ValueError: If the file is missing, empty, cut short, no image, or of a kind that the reader does not take.
    """
    path = Path(path)
    size, tag, kind = None, 1, None
    try:
        with Image.open(path) as image:
            kind, tag = image.format, orientation_of(image)
            if _is_sure(image, path) and reader == DEFAULT_READER:
                size = image.size[::-1]
    except UnidentifiedImageError:  # the reader may know the kind
        pass
    except Exception as error:  # as in Reader.read
        raise ValueError(broken(path, 'image', error)) from error
    turned = tag in TURNED and applies_orientation(reader, kind)
    if size is None:
        size = reader.read(path).shape[:2]
    elif turned and tag in SIDEWAYS:
        size = size[::-1]
    return ImageInfo(size, tag if turned else 1)


@cache
def applies_orientation(reader: Reader, kind: str | None) -> bool:
    """Whether a reader applies the Exif orientation of a Pillow format: OpenCV has learnt it one by one, so it is tried."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = SIDEWAYS[0]
    try:
        Image.new('RGB', (2, 1)).save(file, 'JPEG' if kind == 'MPO' else kind, exif=exif)
        decoded = reader.decode(file.getvalue())
        return decoded is not None and decoded.shape[:2] == (2, 1)
    except Exception:  # no format that carries it
        return False


def _is_sure(image: Image.Image, path: Path) -> bool:
    """Whether a file is whole and OpenCV reads it, as far as that shows without decoding it; raises if it is not whole."""
    near = image.width * image.height <= SURE_PIXELS and max(image.size) <= SURE_SIDE
    if image.format == 'PNG':
        image.verify()
        return near
    if image.format not in ('JPEG', 'MPO'):
        return False
    if b'\xff\xd9' not in _end_of(path):
        image.load()
        return False
    try:
        with Image.open(io.BytesIO(_head_of_jpeg(path) + b'\xff\xd9')) as head:  # are its tables whole?
            head.draft(None, (1, 1))
            head.load()
    except Exception:  # the reader is asked
        return False
    return near


def _head_of_jpeg(path: Path) -> bytes:
    """A JPEG up to its first scan; nothing for coding processes that decoders may lack."""
    with path.open('rb') as file:
        file.seek(2)
        while True:
            mark, marker, length = struct.unpack('>BBH', file.read(4))
            if mark != 0xFF or marker in RARE_JPEG:
                return b''
            if marker == 0xDA:
                end = file.tell() + length - 2
                file.seek(0)
                return file.read(end)
            file.seek(length - 2, io.SEEK_CUR)


def orientation_of(image: Image.Image) -> int:
    """The orientation in a file's Exif data or TIFF tags; that in XMP, which Pillow reads too, is applied by no reader."""
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            return int(image.tag_v2.get(ORIENTATION, 1))
        exif = Image.Exif()
        exif.load(image.info.get('exif', b''))
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # what cannot be parsed is not applied
        return 1


def _end_of(path: Path) -> bytes:
    """A file's last kilobyte."""
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return file.read()


def _kind(path: Path) -> str:
    """A file's kind as Pillow sees it, for a message."""
    try:
        with Image.open(path) as image:
            compression = image.info.get('compression')
            return f'{image.format} of mode {image.mode}' + (f', {compression}' if isinstance(compression, str) else '')
    except Exception:  # as in Reader.read
        return 'it'


def broken(path: Path, kind: str, error: Exception | str) -> str:
    """Why a file cannot be read, in a sentence that begins with it."""
    if not path.is_file():
        twins = [path.with_name(name) for name in (f'{path.stem} {path.suffix}', f' {path.name}')]
        for twin in filter(Path.is_file, twins):
            return f'{path}: the {kind} is missing; {twin.name!r} is there, but lists (ann_file) lose the blank: rename it'
        return f'{path}: the {kind} is missing'
    if not path.stat().st_size:
        return f'{path}: the {kind} is an empty file'
    return f'{path}: the {kind} cannot be read ({str(error).strip() or type(error).__name__})'


def files_in(folder: Path, types: tuple[str, ...] = ('',)) -> list[Path]:
    """Files in a folder and its subfolders, in order.

    Links to files and folders are followed, except links to a folder that they lie in, which would never end. Names that
    begin with a dot are ignored, and with them what a killed process has left unfinished (:mod:`mmseg_eomt.whole`). A link
    to a file that is gone is listed, so that its reader names it.

    Args:
        folder: Where to look; it may be a link.
        types: What the names end in, in lower case. Default: all files.

    Raises:
        ValueError: If a folder cannot be read, or is a link to one that is gone.
    """
    real = folder.resolve()
    return sorted(_files(folder, frozenset((real, *real.parents)), types))


def _files(folder: Path, above: frozenset[Path], types: tuple[str, ...]) -> Iterator[Path]:
    """Files below a folder; ``above`` are the folders, without links, that it lies in or was reached through."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f'{folder} cannot be read ({error.strerror}): make it readable, or take it out.') from error
    for entry in entries:
        path, link = folder / entry.name, entry.is_symlink()
        if entry.name.startswith('.'):
            continue
        if path.is_dir() if link else entry.is_dir():
            real = path.resolve()
            if real not in above:
                yield from _files(path, above.union((real, *real.parents)), types)
        elif entry.name.lower().endswith(types) and (link or entry.is_file()):
            yield path
        elif link and not path.suffix and not path.exists():
            raise ValueError(f'{path} is a link to {os.readlink(path)}, which does not exist: mend the link, or delete it.')
