"""PNG files through kornia-rs: the pixels of the toolbox's own decoders, and whatever else through them."""

import io
import zlib
from collections.abc import Callable

import mmcv
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmseg_eomt.data import png

READS = [('color', 'cv2'), ('color', 'pillow'), ('unchanged', 'cv2'), ('unchanged', 'pillow')]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def file_of(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG', **options)
    return file.getvalue()


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    chunk = kind + data
    return content[:33] + len(data).to_bytes(4, 'big') + chunk + zlib.crc32(chunk).to_bytes(4, 'big') + content[33:]


COLOURS, GREY = Image.fromarray(noise(37, 53, 3)), Image.fromarray(noise(37, 53))
TURNED = Image.Exif()
TURNED[0x0112] = 6
TEXT = PngInfo()
TEXT.add_text('Software', 'any')
PLAIN = dict(
    colours=file_of(COLOURS),
    grey=file_of(GREY),
    one_pixel=file_of(Image.new('RGB', (1, 1), (1, 2, 3))),
    gamma=with_chunk(file_of(COLOURS), b'gAMA', (220000).to_bytes(4, 'big')),
    resolution=file_of(COLOURS, dpi=(300, 300)),
)
OTHER = dict(
    palette=file_of(COLOURS.quantize(16)),
    alpha=file_of(COLOURS.convert('RGBA')),
    grey_alpha=file_of(GREY.convert('LA')),
    transparent_colour=file_of(COLOURS, transparency=(1, 2, 3)),
    transparent_grey=file_of(GREY, transparency=3),
    bits=file_of(GREY.convert('1')),
    words=file_of(Image.fromarray(noise(37, 53).astype(np.uint16) * 200)),
    turned=file_of(COLOURS, exif=TURNED),
    text=file_of(COLOURS, pnginfo=TEXT),
)


def stock(content: bytes, flag: str, backend: str) -> np.ndarray:
    return mmcv.imfrombytes.__wrapped__(content, flag, 'bgr', backend)


@pytest.mark.parametrize('name', [*PLAIN, *OTHER])
def test_the_pixels_are_those_of_the_toolboxs_decoders(name):
    content = {**PLAIN, **OTHER}[name]
    for flag, backend in READS:
        expected, got = stock(content, flag, backend), mmcv.imfrombytes(content, flag=flag, backend=backend)
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected), (flag, backend)
    rgb = mmcv.imfrombytes(content, flag='color', channel_order='rgb')
    assert np.array_equal(rgb, mmcv.imfrombytes(content, flag='color')[..., ::-1])


def test_only_plain_files_go_through_kornia_rs():
    pytest.importorskip('kornia_rs')
    assert png.decode_png(PLAIN['grey'], 'color') is None
    assert png.decode_png(PLAIN['colours'], 'unchanged') is None
    for name, content in PLAIN.items():
        image = png.decode_png(content, 'unchanged' if name == 'grey' else 'color')
        assert image is not None
        assert image.flags.writeable
        assert image.flags.c_contiguous
    assert all(png.decode_png(content, flag) is None for content in OTHER.values() for flag in ('color', 'unchanged'))


def test_damaged_files_are_read_or_refused_as_before():
    whole = PLAIN['colours']
    for content in (whole[:-20], whole[: len(whole) // 2], whole[:100] + b'\0' * 9 + whole[109:], whole[:30], whole[:8]):
        assert png.decode_png(content, 'color') is None
        for flag, backend in READS:
            assert outcome(mmcv.imfrombytes, content, flag, backend) == outcome(stock, content, flag, backend)


def outcome(read: Callable, content: bytes, flag: str, backend: str) -> object:
    try:
        image = read(content, flag=flag, backend=backend)
    except Exception as error:
        return type(error)
    return None if image is None else image.tobytes()


def test_without_kornia_rs_the_toolboxs_decoders_read_everything(monkeypatch):
    monkeypatch.setattr(png, '_decoder', lambda: None)
    assert png.decode_png(PLAIN['colours'], 'color') is None
    assert np.array_equal(mmcv.imfrombytes(PLAIN['colours']), noise(37, 53, 3)[..., ::-1])
