"""tools/init_dataset.py refuses masks that are pictures, and says which images are turned."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from test_init_dataset import CAMVID, ids, init_dataset, made  # noqa: F401  a fixture

from mmseg_eomt.commands.own_data.smoothing import smoothed_values


def shapes(*values: int, num: int = 8, size: tuple[int, int] = (150, 200)) -> list[np.ndarray]:
    """Masks of convex shapes."""
    rng, masks = np.random.default_rng(0), []
    for _ in range(num):
        mask = np.full(size, values[0], np.uint8)
        for value in values[1:] * 3:
            corners = rng.normal(0, 25, (5, 2)) + rng.uniform((0, 0), size[::-1])
            cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.int32))], value)
        masks.append(mask)
    return masks


def recompressed(mask: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, 'JPEG', quality=quality)
    return np.array(Image.open(file))


def resized(mask: np.ndarray, factor: float, interpolation: int) -> np.ndarray:
    return cv2.resize(mask, None, fx=factor, fy=factor, interpolation=interpolation)


SMOOTHED = {
    'antialiasing': lambda mask: cv2.GaussianBlur(mask, (3, 3), 0.5),
    'shrunk linearly': lambda mask: resized(mask, 0.4, cv2.INTER_LINEAR),
    'halved': lambda mask: resized(mask, 0.5, cv2.INTER_AREA),
    'enlarged linearly': lambda mask: resized(mask, 1.7, cv2.INTER_LINEAR),
    'enlarged cubically': lambda mask: resized(mask, 1.7, cv2.INTER_CUBIC),
    'JPEG 75': lambda mask: recompressed(mask, 75),
    'JPEG 95': lambda mask: recompressed(mask, 95),
}


@pytest.mark.parametrize('values', [(0, 255), (0, 128, 255), (0, 50, 100, 150, 200)])
@pytest.mark.parametrize('spoil', SMOOTHED.values(), ids=SMOOTHED)
def test_smoothed_masks_are_recognised(spoil, values):
    masks = shapes(*values)
    assert not smoothed_values(masks)
    found = smoothed_values(map(spoil, masks))
    assert len(found) >= 3 and not set(values) & set(found)


def test_a_class_a_pixel_wide_between_two_others_is_no_smoothing():
    (mask,) = shapes(0, 10, 20, num=1)
    for value in (3, 5, 12, 15):
        cv2.polylines(mask, [np.random.default_rng(value).integers(0, 150, (4, 2)).astype(np.int32)], False, value)
    mask[:, 100:], mask[:, 99] = 30, 25
    assert not smoothed_values([mask])


def test_small_instances_150_classes_and_noise_are_no_smoothing():
    rng = np.random.default_rng(0)
    instances = np.zeros((200, 200), np.uint16)
    for number in range(1, 300):
        (y, x), side = rng.integers(0, 198, 2), rng.integers(1, 4)
        instances[y : y + side, x : x + side] = number
    classes = np.repeat(np.repeat(rng.integers(0, 150, (60, 60)), 3, 0), 3, 1)
    small = np.repeat(rng.integers(0, 150, (60, 60)), 2, 0)
    for mask in (instances, classes, small, rng.integers(0, 19, (90, 90)), np.zeros((1, 9), int), np.eye(2, dtype=int)):
        assert not smoothed_values([mask])


@pytest.mark.skipif(not CAMVID.is_dir(), reason='no CamVid here')
@pytest.mark.parametrize('step', [1, 8, 24])
def test_real_label_maps_are_no_smoothing(step):
    masks = [
        np.array(Image.open(path))[::step, ::step]
        for path in sorted((CAMVID / 'labels').rglob('*.png'))[:: 4 if step == 1 else 1]
    ]
    assert not smoothed_values(masks)
    assert not any(smoothed_values([mask]) for mask in masks)
    objects = []
    for mask in masks[:40]:
        numbered = np.zeros(mask.shape, np.int32)
        for value in np.unique(mask):
            parts = cv2.connectedComponents((mask == value).astype(np.uint8))[1]
            numbered[parts > 0] = parts[parts > 0] + numbered.max()
        objects.append(numbered)
    assert not smoothed_values(objects)


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_smoothed_masks_are_refused_unless_their_values_are_named(init_dataset, tmp_path, mode):  # noqa: F811
    masks = [SMOOTHED['halved'](mask) for mask in shapes(0, 200, num=4)]
    images, folder = made(tmp_path, {str(i): Image.fromarray(mask).convert(mode) for i, mask in enumerate(masks)})
    log = init_dataset(images, folder, check=False)
    assert '3 of the 5 values in the masks (50, 100, 150) are only on borders' in log and 'masks/0.png' in log
    assert not (tmp_path / 'configs').exists()
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'shade{value} {value}' for value in (0, 50, 100, 150, 200)))
    if mode == 'L':
        init_dataset(images, folder, '--classes', names)


def test_lossy_webp_masks_are_refused_and_lossless_ones_are_not(init_dataset, tmp_path):  # noqa: F811
    images, folder = made(tmp_path, {name: ids(0, 3) for name in 'abc'}, mask_suffix='.webp')
    assert 'a.webp: the mask is saved with loss (WebP)' in init_dataset(images, folder, check=False)
    for name in 'abc':
        ids(0, 3).convert('RGB').save(folder / f'{name}.webp', lossless=True)
    init_dataset(images, folder)


def test_jpeg_masks_of_another_name_are_refused(init_dataset, tmp_path):  # noqa: F811
    images, folder = made(tmp_path, {name: ids(0, 1) for name in 'abc'}, mask_suffix='.jpg')
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix('.png'))
    assert 'a.png: the mask is saved with loss (JPEG)' in init_dataset(images, folder, check=False)


def test_turned_images_are_counted_and_drawn_as_they_are_read(init_dataset, tmp_path):  # noqa: F811
    images, folder = made(tmp_path, {name: ids(0, 1) for name in 'abcd'})
    for name, orientation, size in (('b', 3, (96, 64)), ('c', 6, (64, 96))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new('RGB', size).save(images / f'{name}.jpg', exif=exif)
    log = init_dataset(images, folder)
    assert '2 images carry an Exif orientation, which the reader applies, while masks are read as stored' in log
    assert 'For 1 of them no size shows whether the mask fits (the first: b)' in log

    exif[0x0112] = 6
    Image.new('RGB', (96, 64)).save(images / 'd.jpg', exif=exif)
    log = init_dataset(images, folder, '--force', check=False)
    assert 'is 64×96 once its Exif orientation (6) is applied' in log and 'remove the tag of the image' in log


def test_names_that_end_in_a_blank_are_refused(init_dataset, tmp_path):  # noqa: F811
    images, folder = made(tmp_path, {name: ids(0, 1) for name in ('a', 'b', 'c ')})
    assert "c .jpg: lists of images lose the blank that 'c ' begins or ends with" in init_dataset(
        images, folder, check=False
    )
    init_dataset(images, folder, '--skip-bad')
    listed = ''.join((tmp_path / f'data/my_data/{split}.txt').read_text() for split in ('train', 'val'))
    assert sorted(listed.split()) == ['a', 'b']
