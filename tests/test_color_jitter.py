"""The recipe's colour augmentation."""

import mmcv
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS

from mmseg_eomt.data.color_jitter import Change, EoMTColorJitter, apply_changes


def gradient() -> np.ndarray:
    """Blue rises from left to right, red falls; neither clips."""
    columns = np.linspace(60, 160, 32)
    return np.stack([columns, np.full(32, 110), columns[::-1]], axis=1).astype(np.uint8)[None].repeat(4, axis=0)


def apply(jitter: EoMTColorJitter, img: np.ndarray, seed: int) -> np.ndarray:
    np.random.seed(seed)
    return jitter.transform(dict(img=img.copy()))['img']


@pytest.mark.parametrize(
    ('name', 'range_'),
    [('brightness', (1 - 32 / 255, 1 + 32 / 255)), ('contrast', (0.5, 1.5)), ('saturation', (0.5, 1.5))],
)
def test_each_factor_is_drawn_from_its_range_half_of_the_time(name, range_):
    jitter = EoMTColorJitter(**{**dict(brightness=0, contrast=0, saturation=0, hue=0), name: range_[1] - 1})
    img = gradient()

    def measure(img: np.ndarray) -> float:
        img = img.astype(float)
        if name == 'brightness':
            return img.mean()
        return img.std() if name == 'contrast' else (img.max(2) - img.min(2)).mean()

    seen = np.array([measure(apply(jitter, img, seed)) / measure(img) for seed in range(300)])
    still = np.abs(seen - 1) < 1e-9
    assert 0.4 < still.mean() < 0.6
    # 8-bit rounding and clipping bend the ratios a little
    assert range_[0] - 0.05 < seen.min() < range_[0] + 0.1
    assert range_[1] - 0.1 < seen.max() < range_[1] + 0.05


def test_hue_turns_by_at_most_its_degrees_and_grey_stays():
    jitter = EoMTColorJitter(brightness=0, contrast=0, saturation=0, hue=18)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 2] = 255
    turned = np.array([apply(jitter, red, seed)[0, 0] for seed in range(300)])
    assert (turned[:, 2] == 255).all()
    # 18 of the 60 degrees to yellow or magenta
    assert 60 < turned[:, 0].max() <= 0.3 * 255 + 6
    assert 60 < turned[:, 1].max() <= 0.3 * 255 + 6
    grey = np.full((2, 2, 3), 77, np.uint8)
    assert all((apply(jitter, grey, seed) == 77).all() for seed in range(20))


@pytest.mark.parametrize(
    ('kind', 'toolbox'),
    [('brightness', mmcv.adjust_brightness), ('contrast', mmcv.adjust_contrast), ('saturation', mmcv.adjust_color)],
)
def test_each_factor_does_what_the_toolboxs_function_does_to_the_last_bit(kind, toolbox):
    img = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    for factor in (0.5, 0.873, 1.0, 1.1254, 1.5):
        assert np.array_equal(apply_changes(img, [Change(kind, factor)]), toolbox(img, factor))


def test_with_all_at_zero_nothing_changes():
    jitter = EoMTColorJitter(0, 0, 0, 0)
    assert all((apply(jitter, gradient(), seed) == gradient()).all() for seed in range(10))


def test_the_same_seed_draws_the_same_and_the_toolbox_knows_it():
    jitter = TRANSFORMS.build(dict(type='EoMTColorJitter'))
    assert (apply(jitter, gradient(), 5) == apply(jitter, gradient(), 5)).all()
    assert len({apply(jitter, gradient(), seed).tobytes() for seed in range(20)}) > 10
    assert repr(jitter).startswith('EoMTColorJitter(brightness=0.125')


@pytest.mark.parametrize('wrong', [dict(contrast=1.5), dict(hue=-3), dict(brightness=-0.1)])
def test_what_is_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match='must be from 0 to 1'):
        EoMTColorJitter(**wrong)


def test_an_image_of_floats_is_refused():
    with pytest.raises(ValueError, match='needs an image of uint8, got float32'):
        EoMTColorJitter().transform(dict(img=gradient().astype(np.float32)))
