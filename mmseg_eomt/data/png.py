"""PNG files decoded by kornia-rs, where it is installed: the same pixels in half the time."""

import functools
import struct
from collections.abc import Callable

import cv2
import numpy as np

SIGNATURE = b'\x89PNG\r\n\x1a\n'
HARMLESS = {b'IHDR', b'IDAT', b'IEND', b'pHYs', b'gAMA', b'cHRM', b'sRGB', b'iCCP', b'sBIT', b'tIME', b'bKGD'}
KINDS = {('color', 2): 'rgb', ('unchanged', 0): 'mono'}  # of mmcv's flag and the file's colour type: kornia-rs' mode
MAX_PIXELS = 1 << 28  # far from OpenCV's limit


def decode_png(content: bytes, flag: str) -> np.ndarray | None:
    """An 8-bit image from a file's content: (H, W, 3) BGR of a file of colours, (H, W) of one of grey.

    None for everything else, which the toolbox's own decoders read, or refuse in their words: other kinds of files,
    palettes, transparency, 16 bits, interlacing, metadata that may turn an image, files with bad checksums of chunks, and
    where kornia-rs is missing.

    Args:
        content: Of the file.
        flag: As of ``mmcv.imfrombytes``: ``'color'``, or ``'unchanged'`` for label maps.
    """
    decoder = _decoder()
    if decoder is None or not isinstance(content, bytes) or content[:8] != SIGNATURE or not _is_plain(content):
        return None
    width, height, depth, colour, _, _, interlaced = struct.unpack_from('>IIBBBBB', content, 16)
    mode = KINDS.get((flag, colour))
    if mode is None or depth != 8 or interlaced or not 0 < width * height <= MAX_PIXELS:
        return None
    try:
        image = decoder(content, (height, width), mode)
    except Exception:  # it raises nothing more special
        return None
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if mode == 'rgb' else image[..., 0]


@functools.cache
def _decoder() -> Callable[[bytes, tuple[int, int], str], np.ndarray] | None:
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    return decode_image_png_u8


def _is_plain(content: bytes) -> bool:
    """Whether a PNG is whole and has no chunk that may change what a decoder makes of it."""
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, position)
        if kind not in HARMLESS or (kind == b'IHDR') != (position == len(SIGNATURE)):
            return False
        if kind == b'IEND':
            return True
        position += 12 + length
    return False
