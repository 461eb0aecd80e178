"""Component metrics: against the reference, and where the definitions are easily missed."""

import math

import numpy as np
import pytest
import torch
from conftest import reference

from mmseg_eomt.anomaly.metrics.components import PRESETS, FrameComponents, Sizes, match_components, pool_components
from mmseg_eomt.anomaly.metrics.counts import SortedScores

ANY = Sizes(prediction=1, truth=1)


@pytest.fixture(scope='module')
def given() -> dict:
    return reference('anomaly.pt')


def picture(*rows: str) -> np.ndarray:
    """Labels of a drawing: '#' anomaly or predicted, '?' ignored, '.' neither."""
    return np.array([['.#'.find(cell) if cell in '.#' else 255 for cell in row] for row in rows])


def match(truth: np.ndarray, predicted: np.ndarray, sizes: Sizes = ANY) -> tuple[list[float], list[float]]:
    frame = match_components(predicted == 1, truth, sizes)
    return frame.siou.tolist(), frame.ppv.tolist()


@pytest.mark.parametrize('preset', PRESETS)
def test_all_equal_the_reference_also_per_frame(given, preset):
    expected = given['component'][preset]
    sizes = PRESETS[preset]
    assert sizes == Sizes(expected['min_prediction'], expected['min_truth'])
    frames = [
        match_components((scores > expected['threshold']).numpy(), labels.numpy(), sizes)
        for scores, labels in given['frames']
    ]
    for frame, values in zip(frames, expected['per_frame']):
        assert frame.siou.tolist() == pytest.approx(values['sIoU_gt'], abs=1e-9)
        assert frame.ppv.tolist() == pytest.approx(values['PPV'], abs=1e-9)
    pooled = pool_components(frames)
    assert pooled['sIoU'] == pytest.approx(expected['sIoU_gt'], abs=1e-9)
    assert pooled['PPV'] == pytest.approx(expected['PPV'], abs=1e-9)
    assert pooled['mean_F1'] == pytest.approx(expected['mean_F1'], abs=1e-9)
    assert [pooled[f'F1@{tau}'] for tau in range(25, 80, 5)] == pytest.approx(expected['F1'], abs=1e-9)


def test_at_least_our_threshold_is_above_the_references(given):
    """The benchmark predicts where the score is above a threshold; it is the value below ours."""
    pixels = SortedScores()
    for scores, labels in given['frames']:
        pixels.add(scores, labels)
    ours, theirs = pixels.metrics()['threshold'], given['component']['anomaly']['threshold']
    assert np.nextafter(np.float32(ours), np.float32(0)) == np.float32(theirs)
    assert all(torch.equal(scores >= ours, scores > theirs) for scores, _ in given['frames'])


@pytest.mark.parametrize('seed', range(20))
def test_components_equal_their_definition_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = (np.kron(rng.random((8, 8)) < 0.3, np.ones((3, 3))).astype(int) for _ in range(2))
    predicted = np.roll(predicted, rng.integers(0, 3), axis=0)
    truth[rng.random(truth.shape) < 0.05] = 255
    siou, ppv = match(truth, predicted)
    components = [flood(truth == 1), flood((predicted == 1) & (truth != 255))]
    expected = []
    for own in components[0]:
        union = set().union(*(found for found in components[1] if found & own))
        others = set().union(*(other for other in components[0] if other is not own))
        expected.append(len(own & union) / len((own | union) - (union & others)))
    assert sorted(siou) == pytest.approx(sorted(expected))
    all_true = set().union(*components[0])
    assert sorted(ppv) == pytest.approx(sorted(len(found & all_true) / len(found) for found in components[1]))


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels of each component, by walking from neighbour to neighbour."""
    left, components = set(zip(*np.nonzero(mask))), []
    while left:
        component, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            component.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        components.append(component)
    return components


def test_nothing_predicted():
    truth = picture('##..', '##..')
    assert match(truth, np.zeros_like(truth)) == ([0], [])
    pooled = pool_components([match_components(truth == 255, truth, ANY)])
    assert (pooled['sIoU'], pooled['mean_F1']) == (0, 0) and math.isnan(pooled['PPV'])


def test_no_truth():
    predicted = picture('##..', '##..')
    assert match(np.zeros_like(predicted), predicted) == ([], [0])
    pooled = pool_components([match_components(predicted == 1, np.zeros_like(predicted), ANY)])
    assert (pooled['PPV'], pooled['mean_F1']) == (0, 0) and math.isnan(pooled['sIoU'])


def test_neither_truth_nor_prediction_or_no_frame():
    empty = np.zeros((4, 4))
    assert match(empty, empty) == ([], [])
    for frames in ([], [match_components(empty == 1, empty, ANY)]):
        assert all(map(math.isnan, pool_components(frames).values()))


def test_all_ignored():
    assert match(picture('????', '????'), picture('##..', '##..')) == ([], [])


def test_what_is_predicted_outside_the_region_of_interest_does_not_count():
    assert match(picture('##??', '##??'), picture('####', '####')) == ([1], [1])


def test_components_that_touch_at_a_corner_are_one():
    diagonal = picture('##..', '##..', '..##', '..##')
    assert match(diagonal, diagonal) == ([1], [1])
    assert match(diagonal, picture('##..', '##..', '....', '....')) == ([0.5], [1])


def test_ignored_pixels_part_what_would_touch():
    assert match(picture('##?##'), picture('#####')) == ([1, 1], [1, 1])


def test_one_truth_with_two_predictions_is_found_by_both():
    assert match(picture('######', '######'), picture('##.###', '##.###')) == ([10 / 12], [1, 1])


def test_a_prediction_over_two_truths_is_not_counted_twice_against_them():
    """Its pixels on the other one are no part of the union; those on neither are."""
    truth, predicted = picture('##..##', '##..##'), picture('######', '######')
    assert match(truth, predicted) == ([4 / 8, 4 / 8], [8 / 12])


def test_small_predictions_are_dropped_and_small_truths_ignored():
    sizes = Sizes(prediction=4, truth=4)
    truth, predicted = picture('###..##..', '......##.'), picture('####.##..', '.........')
    # the truth of three pixels is ignored, and so are the three of the prediction on it, which has been large enough before
    assert match(truth, predicted, sizes) == ([0], [0])
    # 4 pixels are enough of either
    assert match(picture('####'), picture('####'), sizes) == ([1], [1])
    assert match(picture('###.'), picture('####'), sizes) == ([], [0])
    # what is on ignored truths only is no prediction at all
    assert match(picture('###.', '....'), picture('###.', '....'), Sizes(1, 4)) == ([], [])


def test_a_split_pools_components_whatever_the_order_of_its_images():
    frames = [FrameComponents(rng.random(5), rng.random(3)) for rng in map(np.random.default_rng, range(50))]
    pooled = pool_components(frames)
    assert pooled == pool_components(frames[::-1])
    siou = np.concatenate([frame.siou for frame in frames])
    ppv = np.concatenate([frame.ppv for frame in frames])
    assert pooled['sIoU'] == pytest.approx(siou.mean())
    true, missed, false = (siou >= 0.5).sum(), (siou < 0.5).sum(), (ppv < 0.5).sum()
    assert pooled['F1@50'] == 2 * true / (2 * true + missed + false)
