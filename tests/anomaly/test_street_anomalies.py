"""Made scenes with unseen objects on the road: layout, labels, families."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_eomt.anomaly import AnomalyDataset
from mmseg_eomt.commands.make_street_scenes import CAR, IGNORE, ROAD, Scene, main
from mmseg_eomt.commands.street_anomalies import ANOMALY, FAMILIES, SIDE, add_anomalies, anomaly_labels

SIZES = ('--train', '1', '--val', '1', '--height', '64', '--width', '128')


def files(folder: Path) -> dict[str, bytes]:
    """Files of a folder by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*.png'))}


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('anomalies')
    main([str(out), *SIZES, '--anomalies', '8'])
    return out


def labels(made: Path) -> list[np.ndarray]:
    paths = sorted(made.glob('RoadAnomaly21/labels_masks/*.png'))
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]


def test_the_preset_reads_them(made):
    dataset = AnomalyDataset('course_road_anomaly_21', data_root=str(made))
    assert len(dataset) == 8
    assert {Path(dataset[i]['img_path']).stem for i in range(8)} == {f'street_{i:04d}' for i in range(8)}


def test_each_image_has_its_labels(made):
    images = sorted(path.stem for path in made.glob('RoadAnomaly21/images/*.png'))
    masks = sorted(path.stem for path in made.glob('RoadAnomaly21/labels_masks/*.png'))
    assert len(images) == 8
    assert masks == images


def test_three_of_four_scenes_have_anomalies_and_all_have_ignored_pixels(made):
    found = [set(np.unique(label).tolist()) for label in labels(made)]
    assert found == [{0, 1, 255}, {0, 1, 255}, {0, 1, 255}, {0, 255}] * 2


def test_the_same_seed_writes_the_same_files(made, tmp_path):
    for name, seed in (('again', '0'), ('other', '1')):
        main([str(tmp_path / name), *SIZES, '--anomalies', '8', '--seed', seed])
    assert files(tmp_path / 'again') == files(made)
    assert not set(files(tmp_path / 'other').values()) & set(files(made).values())


def test_the_other_scenes_are_as_they_are_without_anomalies(made, tmp_path):
    main([str(tmp_path), *SIZES])
    plain = files(tmp_path)
    assert len(plain) == 8
    assert {name: content for name, content in files(made).items() if not name.startswith('RoadAnomaly21')} == plain


def test_a_second_call_leaves_none_of_the_first_ones_scenes(made, tmp_path):
    for count in ('5', '2'):
        main([str(tmp_path), '--train', '0', '--val', '0', *SIZES[4:], '--anomalies', count])
    assert len(list(tmp_path.glob('RoadAnomaly21/images/*.png'))) == 2


@pytest.mark.parametrize('name', FAMILIES)
def test_a_family_draws_differing_objects_that_fill_their_canvas(name):
    draw, _ = FAMILIES[name]
    drawings = [draw(np.random.default_rng(seed)) for seed in range(4)]
    for picture, mask in drawings:
        rows = np.nonzero(mask.any(1))[0]
        assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == mask.dtype == np.uint8
        assert rows[-1] - rows[0] > 0.8 * SIDE and 0.1 < mask.mean() < 0.9
    assert len({picture.tobytes() for picture, _ in drawings}) == 4


def test_objects_stand_on_the_road_and_are_larger_when_near():
    shares, feet = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = Scene(rng, 128, 256)
        before = scene.label.copy()
        add_anomalies(rng, scene.image, scene.label, scene.horizon, ROAD)
        count, _, boxes, _ = cv2.connectedComponentsWithStats((scene.label == ANOMALY).astype(np.uint8))
        assert count > 1
        for left, top, wide, tall, _ in boxes[1:]:
            foot = before[top + tall - 1, left : left + wide]
            feet.append(np.isin(foot, (ROAD, CAR)).mean())
            shares.append((top + tall - scene.horizon, tall))
    assert np.mean(feet) > 0.9
    depth, tall = np.array(shares).T
    assert np.corrcoef(depth, tall)[0, 1] > 0.4
    assert tall.min() <= 12 < 30 <= tall.max()


def test_a_pixel_around_an_anomaly_is_ignored_and_so_is_what_the_scene_ignores():
    label = np.zeros((5, 7), np.uint8)
    label[2, 2] = ANOMALY
    label[0, 6] = IGNORE
    expected = np.zeros((5, 7), int)
    expected[1:4, 1:4] = 255
    expected[2, 2], expected[0, 6] = 1, 255
    assert anomaly_labels(label, IGNORE).tolist() == expected.tolist()
