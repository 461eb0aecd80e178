"""Pixel metrics: against the reference, against a plain second implementation, and counted against sorted."""

import math

import numpy as np
import pytest
import torch
from conftest import reference

from mmseg_eomt.anomaly.metrics.counts import PixelScores, ScoreCounts, SortedScores

KINDS = [ScoreCounts, SortedScores]


def collected(kind: type[PixelScores], scores: torch.Tensor, labels: torch.Tensor, offset: float = 0.0) -> PixelScores:
    pixels = kind('rba', offset)
    pixels.add(scores, labels)
    return pixels


def made(number: int = 20000, seed: int = 0, decimals: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores as of rba: most inliers pile up at −0.76; ``decimals`` makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 255], number, p=[0.85, 0.05, 0.1])
    scores = -np.tanh(np.where(labels == 1, rng.beta(2, 2, number), rng.beta(30, 1, number)))
    scores = scores if decimals is None else scores.round(decimals)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels)


def area(height: np.ndarray, at: np.ndarray) -> float:
    """By trapezoids."""
    return float((np.diff(at) * (height[1:] + height[:-1]) / 2).sum())


def plain_metrics(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """By their definitions, each distinct score a threshold, in O(n log n)."""
    counted = labels != 255
    score, positive = scores[counted].numpy(), (labels[counted] == 1).numpy()
    order = np.argsort(-score, kind='stable')
    score, positive = score[order], positive[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # of those that tie
    tp = positive.cumsum()[last]
    fp = last + 1 - tp
    precision, recall, fpr = tp / (tp + fp), tp / tp[-1], fp / fp[-1]
    f1 = 2 * tp / (tp + fp + tp[-1])
    return dict(
        AP=float(((recall - np.append(0, recall[:-1])) * precision).sum()),
        AUROC=area(np.append(0, recall), np.append(0, fpr)),
        FPR95=float(fpr[recall >= 0.95][0]),
        F1=float(f1.max()),
        threshold=float(score[last][f1.argmax()]),
    )


def test_sorted_scores_equal_the_reference_and_counted_ones_are_near():
    frames, expected = reference('anomaly.pt')['frames'], reference('anomaly.pt')['pixel']['exact']
    expected.update(F1=expected.pop('best_f1'), threshold=expected.pop('best_f1_threshold'))
    for kind, tolerance in ((SortedScores, 1e-9), (ScoreCounts, 1e-4)):
        pixels = kind()
        for scores, labels in frames:
            pixels.add(scores, labels)
        assert pixels.metrics() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize('decimals', [None, 3, 2, 1])
def test_sorted_scores_equal_a_plain_implementation_also_with_ties(decimals):
    scores, labels = made(decimals=decimals)
    assert collected(SortedScores, scores, labels).metrics() == pytest.approx(plain_metrics(scores, labels), abs=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_counts_of_scores_that_pile_up_are_exact_to_1e_4_once_shifted(seed):
    scores, labels = made(200_000, seed)
    expected = collected(SortedScores, scores, labels).metrics()
    given = collected(ScoreCounts, scores, labels, offset=-math.tanh(1)).metrics()
    assert given == pytest.approx(expected, abs=1e-4)


def test_counts_are_exact_if_no_two_scores_share_a_bin():
    scores, labels = made(decimals=1)
    expected = plain_metrics(scores, labels)
    given = collected(ScoreCounts, scores, labels).metrics()
    assert abs(given.pop('threshold') - expected.pop('threshold')) < 1e-4
    assert given == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('offset', [0.0, -math.tanh(1), -1.0, 1e-20, 3e7])
def test_a_threshold_predicts_the_very_pixels_that_were_counted(offset):
    scores, labels = made()
    scores = torch.cat((scores, scores * 1e-30, scores * 1e20, torch.tensor([0.0, -0.0])))
    labels = torch.cat((labels, labels, labels, torch.tensor([0, 1])))
    ranking = collected(ScoreCounts, scores, labels, offset).ranking()
    index = np.arange(0, len(ranking.thresholds), 37)
    for threshold, outliers, inliers in zip(ranking.score(index), ranking.outliers[index], ranking.inliers[index]):
        predicted = scores >= float(threshold)
        assert int((predicted & (labels == 1)).sum()) == outliers and int((predicted & (labels == 0)).sum()) == inliers


@pytest.mark.parametrize('kind', KINDS)
def test_thresholds_keep_to_the_rates_that_are_asked_for(kind):
    scores, labels = made()
    pixels = collected(kind, scores, labels)
    inliers, outliers = scores[labels == 0], scores[labels == 1]
    for rate in (0.001, 0.01, 0.3):
        threshold = pixels.fpr_threshold(rate)
        assert (inliers >= threshold).double().mean() <= rate
        assert (inliers >= threshold - 1e-3).double().mean() > rate - 1e-3  # and no lower one does
    for rate in (0.5, 0.95, 1):
        threshold = pixels.tpr_threshold(rate)
        assert (outliers >= threshold).double().mean() >= rate
        assert (outliers > threshold + 1e-3).double().mean() < rate
    assert (inliers < pixels.fpr_threshold(0)).all()
    assert (inliers >= pixels.fpr_threshold(1)).all()
    with pytest.raises(ValueError, match='between 0 and 1, got 95'):
        pixels.tpr_threshold(95)


def test_a_false_positive_rate_of_0_is_reached_where_no_anomaly_is_known():
    for kind in KINDS:
        pixels = collected(kind, torch.tensor([0.1, 0.5, 3.0]), torch.zeros(3))
        assert 3 < pixels.fpr_threshold(0) < 3.001
        assert pixels.fpr_threshold(0.34) == 3


@pytest.mark.parametrize('kind', KINDS)
def test_images_add_up_in_any_order_and_shape(kind):
    scores, labels = made()
    together = collected(kind, scores, labels)
    parts = [collected(kind, a.view(-1, 10), b.view(-1, 10)) for a, b in zip(scores.split(5000), labels.split(5000))]
    whole = kind('rba')
    for part in parts[::-1]:
        whole.merge(part)
    assert whole.metrics() == together.metrics()


def test_counts_of_different_offsets_do_not_mix():
    with pytest.raises(ValueError, match=r'offset of -1.0 cannot be added to those with 0.0'):
        ScoreCounts().merge(ScoreCounts(offset=-1.0))


@pytest.mark.parametrize('kind', KINDS)
def test_curves_are_thinned_and_keep_their_ends(kind):
    scores, labels = made()
    curve = collected(kind, scores, labels).curve(points=50)
    assert 50 <= len(curve['recall']) <= 100
    assert (curve['recall'][0], curve['fpr'][0], curve['precision'][0]) == (0, 0, 1)
    assert (curve['recall'][-1], curve['fpr'][-1]) == (1, 1)
    assert (np.diff(curve['threshold']) < 0).all()
    fine = collected(kind, scores, labels)
    assert area(curve['recall'], curve['fpr']) == pytest.approx(fine.metrics()['AUROC'], abs=0.01)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('present', 'lacks'), [((0, 255), 'anomalous'), ((1,), 'inlier'), ((255,), 'anomalous or inlier')])
def test_what_a_split_cannot_tell_is_nan(kind, present, lacks):
    labels = torch.tensor(present).repeat(10)
    pixels = collected(kind, torch.rand(len(labels)), labels)
    assert pixels.ranking().lacks == lacks
    assert all(map(math.isnan, pixels.metrics().values()))
    assert math.isnan(pixels.tpr_threshold(0.95)) == (1 not in present)
    assert math.isnan(pixels.fpr_threshold(0.05)) == (0 not in present)
    assert all(values.size == 0 for values in pixels.curve().values())


@pytest.mark.parametrize('kind', KINDS)
def test_scores_that_are_no_numbers_are_refused_unless_ignored(kind):
    scores, labels = torch.tensor([0.0, torch.nan, torch.inf, 1.0]), torch.tensor([0, 255, 255, 1])
    assert collected(kind, scores, labels).metrics()['AP'] == 1
    for index in (1, 2):
        with pytest.raises(ValueError, match=r"The score 'rba' is NaN or infinite at 1 of 3 pixels"):
            collected(kind, scores, labels.index_fill(0, torch.tensor([index]), 0))


@pytest.mark.parametrize('kind', KINDS)
def test_labels_of_classes_and_other_sizes_are_refused(kind):
    with pytest.raises(ValueError, match=r'got 7, 18: the dataset must be an AnomalyDataset or a HeldOutClassesDataset'):
        collected(kind, torch.zeros(4), torch.tensor([0, 7, 18, 255]))
    with pytest.raises(ValueError, match=r'shape \(2, 3\) and its labels \(4, 6\).* LoadAnnotations comes after Resize'):
        collected(kind, torch.zeros(2, 3), torch.zeros(4, 6))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_another_precision_are_counted_as_float32(dtype):
    scores, labels = made()
    scores = scores.to(dtype)
    assert collected(ScoreCounts, scores, labels).metrics() == collected(ScoreCounts, scores.float(), labels).metrics()
