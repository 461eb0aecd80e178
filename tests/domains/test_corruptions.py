"""Corruptions are the published ones, seeded by the file's name, and grow with their severity."""

import colorsys
import re

import numpy as np
import pytest
from mmseg.registry import TRANSFORMS
from scipy import ndimage

from mmseg_eomt.domains import Corrupt
from mmseg_eomt.domains.corruptions import FAMILIES, KINDS, plasma

GROWING = [kind for kind in KINDS if kind != 'saturate']  # which first takes colour away and then adds it


@pytest.fixture(scope='module')
def image() -> np.ndarray:
    """Coloured spots of all sizes (96, 128, 3)."""
    noise = np.random.default_rng(0).normal(size=(3, 96, 128, 3))
    spots = sum(sigma * ndimage.gaussian_filter(one, (sigma, sigma, 0)) for sigma, one in zip((1, 3, 9), noise))
    return (128 + 60 * spots).clip(0, 255).astype(np.uint8)


def corrupted(image: np.ndarray, kind: str, severity: int, name: str = 'a/ulm_000000_000019_leftImg8bit.png', **options):
    return Corrupt(kind, severity, **options)(dict(img=image.copy(), img_path=name))['img']


@pytest.mark.parametrize('kind', KINDS)
def test_an_image_depends_on_its_name_alone(image, kind):
    made = corrupted(image, kind, 3)
    assert made.dtype == np.uint8 and made.shape == image.shape
    assert not np.array_equal(made, image)
    np.random.seed(7)  # what else happens in a worker
    np.testing.assert_array_equal(corrupted(image, kind, 3, 'b/ulm_000000_000019_leftImg8bit.png'), made)
    if kind.endswith('noise') or kind in ('fog', 'snow', 'motion_blur'):
        assert not np.array_equal(corrupted(image, kind, 3, 'a/other.png'), made)
        assert not np.array_equal(corrupted(image, kind, 3, seed=1), made)


@pytest.mark.parametrize('kind', GROWING)
def test_a_higher_severity_changes_more(image, kind):
    changes = [np.abs(corrupted(image, kind, severity) - image.astype(float)).mean() for severity in range(1, 6)]
    if kind == 'fog':  # whose cloud is another each time
        assert changes[4] > changes[0]
    elif kind == 'snow':
        assert min(changes[2:]) > max(changes[:2])
    else:
        assert changes == sorted(changes)


def test_noise_has_the_published_amounts(image):
    flat = np.full((256, 256, 3), 128, np.uint8)
    assert (corrupted(flat, 'gaussian_noise', 1) / 255).std() == pytest.approx(0.08, rel=0.02)
    assert (corrupted(flat, 'shot_noise', 1) / 255).std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)
    impulses = corrupted(flat, 'impulse_noise', 5)
    assert (impulses != 128).mean() == pytest.approx(0.27, rel=0.03)
    assert {*np.unique(impulses)} == {0, 128, 255}
    assert (corrupted(flat // 2, 'speckle_noise', 1) / 255).std() == pytest.approx(64 / 255 * 0.15, rel=0.02)


def test_what_has_no_random_numbers_is_as_published(image):
    """Against the formulas, one pixel's HSV at a time; rounded down."""
    x = image / 255
    blurred = ndimage.gaussian_filter(x, (2, 2, 0), mode='nearest', truncate=4.0)
    np.testing.assert_allclose(corrupted(image, 'gaussian_blur', 2), blurred * 255, atol=1)
    mean = x.mean((0, 1))
    np.testing.assert_allclose(corrupted(image, 'contrast', 4), ((x - mean) * 0.1 + mean) * 255, atol=1)
    pixels = [*image[::16, ::16].reshape(-1, 3), np.array([0, 0, 0]), np.array([90, 90, 90])]
    row = np.array(pixels, np.uint8)[None]
    for kind, severity, change in (
        ('brightness', 2, lambda h, s, v: (h, s, min(v + 0.2, 1))),
        ('saturate', 1, lambda h, s, v: (h, s * 0.3, v)),
        ('saturate', 5, lambda h, s, v: (h, min(s * 20 + 0.2, 1), v)),
    ):
        expected = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(pixel[::-1] / 255))))[::-1] for pixel in pixels]
        np.testing.assert_allclose(corrupted(row, kind, severity)[0], np.array(expected) * 255, atol=1.001)


def test_blurs_leave_a_flat_image_and_keep_the_mass_of_a_point():
    flat, point = np.full((64, 64, 3), 77, np.uint8), np.zeros((128, 128, 3), np.uint8)
    point[64, 64] = 255
    for kind in ('defocus_blur', 'motion_blur', 'gaussian_blur'):
        assert np.abs(corrupted(flat, kind, 5).astype(int) - 77).max() <= 1
        corrupt, parameters = KINDS[kind].corrupt, KINDS[kind].parameters[4]
        spread = corrupt(point / 255, parameters, np.random.default_rng(0))
        assert spread.sum() == pytest.approx(3, rel=0.02)  # the largest disk is published with 1.011
    moved = KINDS['motion_blur'].corrupt(point / 255, (20, 15), np.random.default_rng(0))
    rows, columns = np.nonzero(moved[..., 0] > 1e-9)
    assert len(set(zip(rows, columns))) == 41 and columns.max() == 64  # to one side


def test_fog_is_a_fractal_of_the_whole_image(image):
    cloud = plasma(64, 2, np.random.default_rng(0))
    assert cloud.shape == (64, 64) and cloud.min() == 0 and cloud.max() == 1
    steps = np.abs(np.diff(cloud, axis=0)).mean()
    assert steps < np.abs(np.diff(plasma(64, 1.4, np.random.default_rng(0)), axis=0)).mean()  # rougher
    made = corrupted(image, 'fog', 5)
    assert np.abs(np.diff(made.astype(int), axis=1)).mean() < np.abs(np.diff(image.astype(int), axis=1)).mean() / 2


def test_it_stands_in_a_pipeline_and_refuses_what_it_does_not_know(image):
    assert isinstance(TRANSFORMS.build(dict(type='Corrupt', kind='fog', severity=5)), Corrupt)
    assert FAMILIES == ('noise', 'blur', 'weather', 'digital')
    for options, message in (
        (dict(kind='frost'), "kind of Corrupt is one of gaussian_noise, .*, got 'frost'"),
        (dict(kind='fog', severity=0), 'severity of Corrupt is 1, 2, 3, 4 or 5, got 0'),
    ):
        with pytest.raises(ValueError, match=message):
            Corrupt(**options)
    with pytest.raises(ValueError, match=re.escape('of float32')):
        Corrupt('fog')(dict(img=image.astype(np.float32), img_path='a.png'))
