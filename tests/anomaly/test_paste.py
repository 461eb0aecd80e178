"""Pasting outliers into training images."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmseg.datasets import CityscapesDataset
from mmseg.utils import register_all_modules
from outlier_files import write_ade20k, write_coco, write_cutouts

from mmseg_eomt.anomaly import PasteOutliers
from mmseg_eomt.anomaly.outliers.compositing import Cutout, Piece, lay

HEIGHT, WIDTH, HORIZON = 200, 300, 80
ROAD, SIDEWALK, SKY, CAR = 0, 1, 10, 13
CERTAIN = dict(prob=1.0, any_prob=0.0, colour_match=0.0)


@pytest.fixture(autouse=True)
def toolbox() -> None:
    register_all_modules()


@pytest.fixture
def cutouts(tmp_path: Path) -> dict:
    return dict(type='CutoutFolder', folder=str(write_cutouts(tmp_path / 'cutouts')))


def scene(seed: int = 0) -> dict:
    """Sky above a road with a car on it and an ignored strip at the bottom, in blue noise."""
    labels = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    labels[HORIZON:] = ROAD
    labels[120:150, 20:80] = CAR
    labels[-4:] = 255
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0] = np.random.default_rng(seed).integers(100, 200, labels.shape)
    return dict(img=image, gt_seg_map=labels, img_path='made.png')


def pasted(transform: PasteOutliers, seed: int, sample: dict | None = None) -> dict:
    np.random.seed(seed)
    return transform.transform(sample or scene())


def many(transform: PasteOutliers, number: int = 60) -> list[dict]:
    return [pasted(transform, seed) for seed in range(number)]


@pytest.mark.parametrize('feather', [0, 2, 5])
def test_nothing_changes_outside_of_outliers_and_their_rings(cutouts, feather):
    before = scene()
    for after in many(PasteOutliers(cutouts, **{**CERTAIN, 'any_prob': 0.5}, feather=feather), 20):
        changed = (after['img'] != before['img']).any(-1)
        outlier, ring = after['gt_seg_map'] == 254, (after['gt_seg_map'] == 255) & (before['gt_seg_map'] != 255)
        assert outlier.any() and not (changed & ~outlier & ~ring & (before['gt_seg_map'] != 255)).any()
        assert changed[ring].mean() > 0.95  # where blending rounds to the old value, it is ignored all the same
        assert (after['gt_seg_map'][~outlier & ~ring] == before['gt_seg_map'][~outlier & ~ring]).all()
        near = cv2.dilate(outlier.astype(np.uint8), np.ones((2 * feather + 7,) * 2))  # cut-outs that grow have softer edges
        assert not (ring & (near == 0)).any()


def test_the_label_is_where_alpha_is_above_one_half_and_the_ring_is_beyond():
    alpha = np.zeros((9, 9), np.float32)
    alpha[1:8, 1:8], alpha[2:7, 2:7], alpha[3:6, 3:6] = 0.3, 0.5, 0.51
    image = np.zeros((40, 40, 3), np.uint8)
    piece = Piece(np.dstack((np.ones((9, 9, 3), np.float32) * alpha[..., None], alpha)))
    outlier, ring = lay(image, piece, 10, 20, feather=0)
    assert outlier.sum() == 9 and outlier[13:16, 23:26].all()
    assert (ring == ((image > 0).any(-1) & ~outlier)).all() and ring.sum() == 49 - 9
    assert set(np.unique(image)) == {0, 76, 128, 130}


def test_inside_an_outlier_stays_as_sharp_as_it_was_and_transparent_pixels_colour_nothing():
    """Of a thin line too, which a blurred alpha would wash out. The cut-out's transparent pixels are red."""
    pixels = np.zeros((30, 30, 3), np.uint8)
    pixels[...] = (0, 0, 255)
    pixels[:, 15] = (0, 255, 0)
    alpha = np.zeros((30, 30), np.uint8)
    alpha[:, 15] = 255
    image = np.zeros((60, 60, 3), np.uint8)
    outlier, ring = lay(image, Piece.of(Cutout(pixels, alpha, 'line')), 10, 10, feather=2)
    assert outlier.sum() == 30 and (image[outlier] == (0, 255, 0)).all()
    assert ring.sum() > 60 and image[ring][:, 1].max() < 128
    assert not image[..., [0, 2]].any()
    grown = Piece.of(Cutout(pixels, np.pad(alpha[:, 10:20], ((0, 0), (10, 10))), 'line')).turned(20, True).resized(90, 40)
    image = np.zeros((120, 120, 3), np.uint8)
    lay(image, grown, 10, 10, feather=3)
    assert image[..., 1].any() and not image[..., [0, 2]].any()


def test_on_the_road_outliers_stand_on_the_road_and_not_on_cars(cutouts):
    for after in many(PasteOutliers(cutouts, **CERTAIN, number=(1, 1))):
        (one,) = after['outliers']['placed']
        outlier = after['gt_seg_map'] == 254
        assert one['on_ground'] and one['foot'] >= HORIZON
        foot = np.flatnonzero(outlier.any(1))[-1]
        assert foot <= one['foot'] < HEIGHT - 4  # on what is ignored, nothing stands either
        rows = np.flatnonzero(outlier.any(1))
        low = outlier & (np.arange(HEIGHT)[:, None] > rows[0] + 0.75 * len(rows))
        assert (scene()['gt_seg_map'][low] == ROAD).mean() > 0.7


def test_on_the_road_outliers_shrink_towards_the_horizon(cutouts):
    transform = PasteOutliers(cutouts, **CERTAIN, size=(0.3, 0.3), min_pixels=1, number=(1, 1), rotation=0)
    found = [after['outliers']['placed'][0] for after in many(transform)]
    feet, sides = (np.array([one[key] for one in found]) for key in ('foot', 'side'))
    horizon = HORIZON + 0.5
    expected = 0.3 * HEIGHT * (feet - horizon) / (HEIGHT - 1 - horizon)
    assert np.abs(sides - expected).max() < 1.5
    assert sides.min() < 20 < 40 < sides.max()
    flat = PasteOutliers(cutouts, **CERTAIN, size=(0.3, 0.3), perspective=False, number=(1, 1))
    assert {after['outliers']['placed'][0]['side'] for after in many(flat, 20)} == {60}


def test_anywhere_is_in_the_sky_too_and_so_is_a_part_of_those_of_the_road(cutouts):
    feet = [one['outliers']['placed'][0]['foot'] for one in many(PasteOutliers(cutouts, **CERTAIN, where='any'))]
    assert 0.15 < np.mean(np.array(feet) < HORIZON) < 0.5
    part = [
        one['on_ground']
        for after in many(PasteOutliers(cutouts, **{**CERTAIN, 'any_prob': 0.3}), 100)
        for one in after['outliers']['placed']
    ]
    assert 0.6 < np.mean(part) < 0.8


@pytest.mark.parametrize('where', [[SKY], ['sky'], ('Sky', 'terrain')])
def test_outliers_stand_on_the_classes_that_are_named(cutouts, where):
    found = many(PasteOutliers(cutouts, **CERTAIN, where=where), 20)
    feet = [one['foot'] for after in found for one in after['outliers']['placed']]
    assert feet and max(feet) < HORIZON


def test_the_road_is_found_among_other_classes_by_its_name(cutouts):
    classes = ('sky', 'Street', 'car', 'grass')
    assert PasteOutliers(cutouts, known_classes=classes).placement.ground_ids == [1]
    assert PasteOutliers(cutouts).placement.ground_ids == [ROAD, SIDEWALK]
    with pytest.raises(ValueError, match='where must be ids or names of sky, car, which has no road'):
        PasteOutliers(cutouts, known_classes=('sky', 'car'))


def test_sizes_are_log_uniform_between_their_bounds(cutouts):
    sizes = dict(size=(0.05, 0.4), where='any', number=(1, 1), min_pixels=1)
    sides = [after['outliers']['placed'][0]['side'] for after in many(PasteOutliers(cutouts, **CERTAIN, **sizes), 200)]
    assert min(sides) >= 10 and max(sides) <= 80
    assert 24 < np.median(sides) < 33  # 28.3; of a uniform distribution 45


def test_outliers_do_not_cover_one_another(cutouts):
    transform = PasteOutliers(cutouts, **CERTAIN, where='any', number=(3, 3), size=(0.3, 0.4), feather=0, rotation=0)
    for after in many(transform, 20):
        sizes = [one['side'] ** 2 for one in after['outliers']['placed']]
        assert (after['gt_seg_map'] == 254).sum() >= 0.75 * sum(sizes)


def test_the_same_seed_pastes_the_same_and_another_one_something_else(cutouts):
    transform = PasteOutliers(cutouts, prob=1.0)
    first = pasted(transform, 5)
    many(transform, 5)
    again = pasted(pickle.loads(pickle.dumps(transform)), 5)
    assert (first['img'] == again['img']).all() and (first['gt_seg_map'] == again['gt_seg_map']).all()
    assert (pasted(transform, 6)['img'] != first['img']).any()


def test_what_follows_draws_the_same_random_numbers_whatever_was_pasted(cutouts):
    after = []
    for prob, number in ((0.0, (1, 1)), (1.0, (1, 1)), (1.0, (3, 3))):
        pasted(PasteOutliers(cutouts, prob=prob, number=number), 3)
        after.append(np.random.rand())
    assert len(set(after)) == 1


def test_outliers_come_with_their_probability_and_the_sample_given_is_left_as_it_was(cutouts):
    transform = PasteOutliers(cutouts)
    sample = scene()
    results = [pasted(transform, seed, dict(sample)) for seed in range(400)]
    assert 0.06 < np.mean([(one['gt_seg_map'] == 254).any() for one in results]) < 0.14
    assert (sample['img'] == scene()['img']).all() and (sample['gt_seg_map'] == scene()['gt_seg_map']).all()


def test_where_nothing_can_be_placed_the_image_is_untouched_and_it_is_counted_and_said_once(cutouts, caplog):
    MMLogger.get_current_instance().addHandler(caplog.handler)
    transform = PasteOutliers(cutouts, **CERTAIN, number=(2, 2))
    sample = scene()
    sample['gt_seg_map'][:] = SKY
    for seed in range(60):
        after = pasted(transform, seed, {**sample})
        assert after['outliers'] == dict(placed=[], failed=2)
        assert (after['img'] == sample['img']).all() and (after['gt_seg_map'] == SKY).all()
    MMLogger.get_current_instance().removeHandler(caplog.handler)
    assert caplog.text.count('PasteOutliers found no place for 50 of 50 outliers') == 1
    assert caplog.text.count('PasteOutliers: 100 outliers in process') == 1 and ', 100 without a place' in caplog.text


def test_a_cut_out_of_nothing_finds_no_place(cutouts):
    transform = PasteOutliers(cutouts, **CERTAIN)
    transform.source.draw = lambda *_: Cutout(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9), np.uint8), 'nothing')
    result = pasted(transform, 0)
    assert result['outliers']['placed'] == [] and result['outliers']['failed'] > 0


def test_matched_colours_come_closer_to_the_surroundings(cutouts):
    def distance(colour_match: float) -> float:
        transform = PasteOutliers(cutouts, **{**CERTAIN, 'colour_match': colour_match}, feather=0)
        return np.mean(
            [
                np.abs(after['img'][after['gt_seg_map'] == 254].mean(0) - scene()['img'].mean((0, 1))).mean()
                for after in many(transform, 20)
            ]
        )

    assert distance(1.0) < 0.7 * distance(0.0)


def test_a_source_with_classes_of_the_model_is_refused_by_name(tmp_path):
    images, annotations = write_coco(tmp_path / 'coco')
    source = dict(type='CocoInstances', images=str(images), annotations=str(annotations), min_area=500)
    PasteOutliers(source)
    with pytest.raises(ValueError, match='the model knows car of CocoInstances'):
        PasteOutliers({**source, 'exclude': ()})
    without_car = [name for name in CityscapesDataset.METAINFO['classes'] if name != 'car']
    PasteOutliers({**source, 'exclude': ()}, known_classes=without_car)
    PasteOutliers({**source, 'exclude': ()}, allow_known=True)
    regions = dict(type='DatasetRegions', dataset=write_ade20k(tmp_path / 'ade'), classes=['chair', 'minibike', 'van'])
    with pytest.raises(ValueError, match='the model knows van of DatasetRegions'):
        PasteOutliers(regions)


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        (dict(prob=1.5), 'prob must be a probability from 0 to 1, got 1.5'),
        (dict(number=(0, 2)), r'number must be the fewest and most outliers, such as \(1, 3\), got \(0, 2\)'),
        (dict(number=(3, 2)), 'number must be'),
        (dict(number=3), 'number must be'),
        (dict(size=(0, 0.5)), 'size must be two fractions above 0'),
        (dict(size=(0.1, 2)), 'size must be'),
        (dict(feather=-1), 'feather must be a number of pixels'),
        (dict(where='pavement'), "where must be 'road', 'any', or a list of classes"),
        (dict(where=['dragon']), 'where must be ids or names of road, sidewalk'),
        (dict(where=[]), 'where must be'),
        (dict(label=255), 'label must be an id from 0 to 254'),
        (dict(label=3), r'label must be no id of a class \(0 to 18\)'),
        (dict(retries=0), 'retries must be'),
        (dict(min_pixels=0), 'min_pixels must be'),
        (dict(rotation=-5), 'rotation must be'),
    ],
)
def test_what_is_out_of_range_is_refused(cutouts, wrong, said):
    with pytest.raises(ValueError, match=said):
        PasteOutliers(cutouts, **wrong)


@pytest.mark.parametrize(
    ('sample', 'said'),
    [
        (dict(gt_seg_map=None), 'put it after LoadAnnotations'),
        (dict(img=np.zeros((HEIGHT, WIDTH, 3), np.float32)), 'needs an image .* of uint8, and made.png is'),
        (dict(img=np.zeros((HEIGHT, 7, 3), np.uint8)), r'made.png is \(200, 7\), and its label map \(200, 300\)'),
    ],
)
def test_a_sample_that_cannot_be_pasted_into_is_refused(cutouts, sample, said):
    with pytest.raises(ValueError, match=said):
        pasted(PasteOutliers(cutouts), 0, {**scene(), **sample})


def with_outliers(config, source: dict, **options) -> None:
    """Paste into the training images of a small config, which has the head for it."""
    config.model.type, config.model.decode_head.type = 'EoMTAnomalySegmentor', 'EoMTAnomalyHead'
    options = {**dict(prob=0.7, min_pixels=4, size=(0.1, 0.5)), **options}
    pipeline = config.train_dataloader.dataset.pipeline
    step = dict(type='PasteOutliers', source=source, **options)
    config.train_dataloader.dataset.pipeline = [*pipeline[:2], step, *pipeline[2:]]


def batches(config) -> list[tuple[int, int]]:
    """Sums of the images and numbers of outlier pixels of the batches that a run trains on."""
    runner = Runner.from_cfg(config)
    seen: list[tuple[int, int]] = []
    step = runner.model.train_step

    def train_step(data: dict, optim_wrapper: object) -> dict:
        labels = [sample.gt_sem_seg.data for sample in data['data_samples']]
        seen.append((sum(int(i.long().sum()) for i in data['inputs']), sum(int((one == 254).sum()) for one in labels)))
        return step(data, optim_wrapper)

    runner.model.train_step = train_step
    runner.train()
    runner.train_dataloader._iterator = runner.train_loop.dataloader_iterator = None  # as in test_exact_resume
    return seen


def test_a_run_with_worker_processes_trains_on_outliers_and_resumes_exactly(small_config):
    """Of patches of other training images; its batches are those that a run which is not stopped has."""
    changes = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
    changes.update({'default_hooks.checkpoint.interval': 2, 'val_dataloader': None, 'val_evaluator': None, 'val_cfg': None})
    config = small_config(max_iters=4, **changes)
    with_outliers(config, dict(type='TrainingPatches'))
    whole = batches(config)
    assert sum(outliers > 0 for _, outliers in whole) >= 2
    (Path(config.work_dir) / 'last_checkpoint').write_text('iter_2.pth')
    config.resume = True
    assert batches(config) == whole[2:]
