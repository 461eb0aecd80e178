"""All augmentations of the recipe in one transform, against the five that it stands for."""

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmseg_eomt.data.augment import EoMTAugment
from mmseg_eomt.data.color_jitter import Change, apply_changes

CROP = (96, 96)
COLOURS = dict(type='EoMTColorJitter')


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


def five_transforms(crop: tuple[int, int] = CROP, jitter: bool = True) -> Compose:
    steps = [
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomResize', scale=crop[::-1], ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='Pad', size=crop[::-1], pad_val=dict(img=0, seg=255)),
        dict(type='RandomCrop', crop_size=crop),
    ]
    return Compose([COLOURS, *steps] if jitter else steps)


def sample(shape: tuple[int, int], low: int = 0, high: int = 255) -> dict:
    """A smooth image with edges, and labels that differ from pixel to pixel."""
    rng = np.random.default_rng(shape[0])
    coarse = rng.uniform(low, high, (6, 8, 3)).astype(np.float32)
    img = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)
    img[shape[0] // 3 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = (low, high, (low + high) / 2)
    labels = rng.integers(0, 19, shape).astype(np.uint8)
    return dict(img=img.astype(np.uint8), gt_seg_map=labels, seg_fields=['gt_seg_map'])


def run(transform: Compose | EoMTAugment, seed: int, data: dict) -> dict:
    np.random.seed(seed)
    return transform({name: value.copy() if hasattr(value, 'copy') else value for name, value in data.items()})


@pytest.mark.parametrize('crop', [CROP, (64, 120)])
@pytest.mark.parametrize('shape', [(128, 256), (256, 130), (97, 97), (40, 31)])
def test_without_colours_it_equals_the_five_transforms_to_the_last_bit(shape, crop):
    old, new, data = five_transforms(crop, jitter=False), EoMTAugment(crop, jitter=None), sample(shape)
    for seed in range(12):
        expected, got = run(old, seed, data), run(new, seed, data)
        assert np.array_equal(got['img'], expected['img'])
        assert np.array_equal(got['gt_seg_map'], expected['gt_seg_map'])
        for name in ('scale', 'scale_factor', 'keep_ratio', 'flip', 'flip_direction', 'img_shape', 'pad_shape'):
            assert got[name] == expected[name], name


@pytest.mark.parametrize(
    ('low', 'high', 'jitter', 'quantile', 'largest', 'mean'),
    [
        (60, 140, dict(hue=0), 1, 3, 0.2),  # nothing clips, the hue stays: rounding alone
        (0, 255, dict(), 0.99, 4, 0.6),  # more at edges of the strongest colours: few pixels
    ],
)
def test_with_colours_it_draws_the_same_and_differs_by_a_rounding(low, high, jitter, quantile, largest, mean):
    old, new, data = five_transforms(), EoMTAugment(CROP, jitter=jitter), sample((160, 320), low, high)
    old.transforms[0] = type(old.transforms[0])(**jitter)
    for seed in range(40):
        expected, got = run(old, seed, data), run(new, seed, data)
        assert np.array_equal(got['gt_seg_map'], expected['gt_seg_map'])
        difference = np.abs(got['img'].astype(int) - expected['img'])
        assert np.quantile(difference, quantile) <= largest
        assert difference.mean() <= mean
        assert np.random.rand() == (run(old, seed, data), np.random.rand())[1]  # as many numbers were drawn


def test_contrast_is_about_the_mean_of_the_whole_image_with_what_changed_before():
    whole = sample((1200, 1600))['img']
    changes = [Change('brightness', 1.12), Change('saturation', 1.5), Change('hue', 12), Change('contrast', 0.5)]
    part = np.s_[:300, :200]
    expected = apply_changes(whole, changes)[part].astype(int)
    assert np.abs(apply_changes(whole[part].copy(), changes, whole) - expected).max() <= 1
    alone = apply_changes(whole[part].copy(), changes)
    assert np.abs(alone - expected).max() > 3  # the part's own mean is another


def test_scales_positions_and_flips_have_the_recipes_distribution():
    data = sample((96, 192))
    columns = np.broadcast_to(np.arange(192, dtype=np.uint8), (96, 192))
    data.update(img=np.stack([columns] * 3, axis=2), gt_seg_map=columns)
    augment = EoMTAugment(CROP, jitter=None)
    np.random.seed(0)
    drawn = [augment({name: value for name, value in data.items()}) for _ in range(2000)]
    ratios = np.array([one['scale_factor'][0] * 2 for one in drawn])  # 192 wide in a crop of 96
    assert np.abs(np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]) - [0.5, 0.875, 1.25, 1.625, 2]).max() < 0.05
    flips = np.array([one['flip'] for one in drawn])
    assert abs(flips.mean() - 0.5) < 0.05
    firsts = np.array([(int(one['img'][0, 0, 0]), f) for one, f in zip(drawn, flips)])
    large = ratios > 1.8
    starts = np.where(flips, 191 - firsts[:, 0], firsts[:, 0])[large]  # columns left of the crop, of 85 to 96
    assert np.abs(np.quantile(starts, [0.25, 0.5, 0.75]) - np.array([0.25, 0.5, 0.75]) * 91).max() < 8
    assert abs(np.corrcoef(ratios, flips)[0, 1]) < 0.07


def test_an_image_without_labels_and_one_number_as_a_size():
    np.random.seed(1)
    results = EoMTAugment(32, ratio_range=(0.5, 0.5))(dict(img=sample((60, 60))['img']))
    assert results['img'].shape == (32, 32, 3)
    assert not results['img'][16:].any()
    assert 'gt_seg_map' not in results


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(crop_size=(1, 2, 3)), r'crop_size is one number of pixels or two, \(rows, columns\), got \(1, 2, 3\)'),
        (dict(crop_size=0), 'crop_size is one number'),
        (dict(crop_size=8, ratio_range=(2.0, 0.5)), 'the smaller one first, got'),
        (dict(crop_size=8, pad_val=dict(img=(0, 0, 0))), 'pad_val is a whole number for img'),
        (dict(crop_size=8, flip_prob=1.5), 'flip_prob is from 0 to 1, got 1.5'),
        (dict(crop_size=8, jitter=dict(contrast=2)), 'must be from 0 to 1'),
    ],
)
def test_what_is_out_of_range_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        EoMTAugment(**wrong)


def test_images_and_labels_that_do_not_fit_are_refused():
    data = sample((40, 50))
    with pytest.raises(ValueError, match='EoMTAugment needs an image of uint8, got float32: remove to_float32'):
        EoMTAugment(32)(dict(data, img=data['img'].astype(np.float32)))
    with pytest.raises(ValueError, match=r'needs an image \(H, W, 3\), got \(40, 50\)'):
        EoMTAugment(32)(dict(data, img=data['img'][..., 0]))
    with pytest.raises(ValueError, match=r'a\.png has 20×50 labels \(height × width\) and its image 40×50 pixels'):
        EoMTAugment(32)(dict(data, gt_seg_map=data['gt_seg_map'][:20], seg_map_path='a.png'))
