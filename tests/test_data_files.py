"""What is asked of image and mask files, and of the reader that a run takes."""

import re
import struct
import zlib
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from mmseg_eomt.data.check import Finding, LabelRule, Sample, check_sample
from mmseg_eomt.data.images import Reader, inspect_image
from mmseg_eomt.data.masks import read_mask


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_ids(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(ids).save(path)


def turn(path: Path, orientation: int, **options) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif, **options)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
def test_a_phone_picture_lying_on_its_side_has_the_size_that_is_trained_on(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f'a{suffix}'
    Image.new('RGB', (40, 20)).save(path, exif=exif)
    assert inspect_image(path).size == cv2.imread(str(path)).shape[:2] == (40, 20)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.bmp', '.webp'])
def test_whole_images_of_all_kinds_pass_and_cut_ones_do_not(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    assert check_sample(Sample(str(path))) == Finding()
    cut_short(path)
    assert 'cannot be read' in check_sample(Sample(str(path))).problem


@pytest.mark.parametrize(('suffix', 'orientation'), [('.jpg', 2), ('.png', 3), ('.webp', 4), ('.tif', 6), ('.jpg', 8)])
def test_the_orientation_is_the_one_that_the_reader_applies(tmp_path, suffix, orientation):
    path, mask = tmp_path / f'a{suffix}', tmp_path / 'mask.png'
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:4, :4] = 255  # a corner that shows how it is turned
    Image.fromarray(picture).save(path)
    turn(path, orientation)
    read = mmcv.imfrombytes(path.read_bytes(), flag='color', backend='cv2')
    assert read[:4, :4].mean() < 100  # turned
    assert inspect_image(path) == (read.shape[:2], orientation)
    write_ids(mask, np.zeros(read.shape[:2], np.uint8))
    assert check_sample(Sample(str(path), str(mask))) == Finding(None, (read.shape[:2], orientation))
    if suffix != '.tif':  # its readers turn it in any case
        assert inspect_image(path, Reader('unchanged')) == ((16, 32), 1)


def test_a_mask_of_the_size_before_turning_is_explained(tmp_path):
    path, mask = tmp_path / 'a.jpg', tmp_path / 'a.png'
    Image.new('RGB', (40, 20)).save(path)
    turn(path, 6)
    write_ids(mask, np.zeros((20, 40), np.uint8))
    problem = check_sample(Sample(str(path), str(mask))).problem
    assert 'is 40×20 pixels' in problem and '20×40 once its Exif orientation (6) is applied' in problem
    assert 'exiftool' in problem


def test_a_mask_with_an_orientation_of_its_own_is_refused(tmp_path):
    path = tmp_path / 'a.png'
    write_ids(path, np.zeros((20, 40), np.uint8))
    turn(path, 3)
    with pytest.raises(ValueError, match=r'a.png: the mask carries an Exif orientation \(3\)'):
        read_mask(path)


@pytest.mark.parametrize(
    ('mode', 'compression', 'shown'),
    [
        ('F', 'raw', 'TIFF of mode F, raw'),
        ('RGB', 'zstd', 'TIFF of mode RGB, zstd'),
        ('RGB', 'lzma', 'TIFF of mode RGB, lzma'),
    ],
)
def test_what_pillow_opens_and_the_reader_of_the_run_does_not_is_named(tmp_path, mode, compression, shown):
    path = tmp_path / 'a.tif'
    Image.new('L', (40, 20)).convert(mode).save(path, compression=compression)
    assert cv2.imread(str(path)) is None
    assert check_sample(Sample(str(path))).problem == (
        f'{path}: the image cannot be read (cv2, the reader of the run, does not take {shown})'
    )
    assert check_sample(Sample(str(path), reader=Reader(backend='pillow'))) == Finding()


def test_what_the_reader_takes_and_pillow_does_not_passes(tmp_path):
    path = tmp_path / 'a.tif'
    cv2.imwrite(str(path), np.zeros((20, 40, 3), np.int16))
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    assert inspect_image(path).size == (20, 40)


def one_bit_png(path: Path, side: int) -> None:
    """A black square, written without holding it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    rows = bytes((1 + (side + 7) // 8) * 100)
    content = b''.join(packer.compress(rows) for _ in range(side // 100)) + packer.flush()
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', content) + chunk(b'IEND', b''))


def test_images_of_more_than_179_megapixels_pass_up_to_what_the_reader_takes(tmp_path):
    path = tmp_path / 'a.png'
    one_bit_png(path, 13500)
    assert inspect_image(path).size == (13500, 13500)
    assert read_mask(path)[0].shape == (13500, 13500)  # LoadAnnotations opens it with Pillow, too
    one_bit_png(path, 33000)  # above 2^30
    assert 'the image cannot be read (OpenCV' in check_sample(Sample(str(path))).problem


def test_an_ordinary_image_is_not_decoded_and_a_jpeg_with_a_damaged_table_is_found(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    jpeg, png = tmp_path / 'a.jpg', tmp_path / 'a.png'
    picture.save(jpeg)
    picture.save(png)
    content = bytearray(jpeg.read_bytes())
    content[content.index(b'\xff\xc4') + 8] ^= 0xFF  # in a Huffman table
    (tmp_path / 'bad.jpg').write_bytes(content)
    assert cv2.imread(str(tmp_path / 'bad.jpg')) is None
    assert 'bad.jpg: the image cannot be read' in check_sample(Sample(str(tmp_path / 'bad.jpg'))).problem
    monkeypatch.setattr(Reader, 'decode', lambda *_: pytest.fail('decoded'))
    assert inspect_image(jpeg).size == inspect_image(png).size == (50, 60)


LOSSY = {
    'WebP': ('.webp', dict(quality=95)),
    'animated WebP': ('.webp', dict(save_all=True, append_images=[Image.new('L', (40, 20))])),
    'JPEG': ('.jpg', dict(quality=100)),
    'JPEG in TIFF': ('.tif', dict(compression='jpeg')),
}


@pytest.mark.parametrize(('suffix', 'options'), LOSSY.values(), ids=LOSSY)
def test_masks_saved_with_loss_are_refused_by_their_content(tmp_path, suffix, options):
    path = tmp_path / f'a{suffix}'
    write_ids(tmp_path / 'a.png', np.eye(20, 40, dtype=np.uint8))
    Image.open(tmp_path / 'a.png').save(path, **options)
    path.rename(tmp_path / 'b.png')
    with pytest.raises(ValueError, match=r'b\.png: the mask is saved with loss'):
        read_mask(tmp_path / 'b.png')


@pytest.mark.parametrize(('suffix', 'options'), [('.webp', dict(lossless=True)), ('.tif', dict(compression='tiff_lzw'))])
def test_masks_saved_without_loss_are_read(tmp_path, suffix, options):
    ids = np.eye(20, 40, dtype=np.uint8)
    Image.fromarray(ids).save(tmp_path / f'a{suffix}', **options)
    values, _ = read_mask(tmp_path / f'a{suffix}')
    assert ((values if values.ndim == 2 else values[..., 0]) == ids).all()


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (np.full((20, 40), 0.5, np.float32), r'holds numbers with fractions \(float32\)'),
        (np.full((20, 40), np.nan, np.float32), 'holds numbers with fractions'),
        (np.full((20, 40), -1, np.int32), 'id -1 is neither'),
        (np.zeros((1, 40), np.uint8), 'has a side of one pixel'),
    ],
)
def test_masks_that_the_toolbox_would_misread_are_refused(tmp_path, values, message):
    image, mask = tmp_path / 'a.png', tmp_path / 'a.tif'
    Image.new('RGB', values.shape[::-1]).save(image)
    write_ids(mask, values)
    assert re.search(message, check_sample(Sample(str(image), str(mask), LabelRule(2))).problem)
