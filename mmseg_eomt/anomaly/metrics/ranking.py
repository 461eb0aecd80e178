"""How the pixels of a split rank by their anomaly score: average precision, false positives, thresholds, curves.

Pixels are predicted as anomalies where ``score >= threshold``. All those of a split are pooled, whichever image they are of.
"""

from dataclasses import dataclass

import numpy as np

LAST_KEY = 0x7F800000  # of infinity


def values_of(keys: np.ndarray) -> np.ndarray:
    """The float32 values that integers in their order stand for: their bits, with those below a set sign flipped."""
    keys = keys.astype(np.int32)
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32)


def lowest_reaching(thresholds: np.ndarray, offset: float) -> np.ndarray:
    """For each threshold, the lowest float32 value from which ``offset`` can be subtracted without falling below it.

    So a pixel is predicted or not by its score as by its shifted score, although the subtraction rounds.
    """
    low, high = np.full(thresholds.shape, -LAST_KEY, np.int64), np.full(thresholds.shape, LAST_KEY, np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        reaches = values_of(middle) - np.float32(offset) >= thresholds
        low, high = np.where(reaches, low, middle + 1), np.where(reaches, middle, high)
    return values_of(low) + np.float32(0)


@dataclass(frozen=True)
class Ranking:
    """How many pixels reach each threshold.

    Attributes:
        thresholds: (N,) float32, descending. The first one is above all scores, so that no pixel reaches it.
        outliers: (N,) int64, the number of anomalous pixels whose score is at least the threshold.
        inliers: The same of the others.
        offset: What was subtracted from the scores; the thresholds that methods return are those of the scores themselves.
    """

    thresholds: np.ndarray
    outliers: np.ndarray
    inliers: np.ndarray
    offset: float = 0.0

    @property
    def lacks(self) -> str:
        """Which kind of pixel there is none of, so that metrics are NaN: empty if there are both."""
        absent = [kind for kind, number in (('anomalous', self.outliers[-1]), ('inlier', self.inliers[-1])) if not number]
        return ' or '.join(absent)

    @property
    def tpr(self) -> np.ndarray:
        """True positive rate, or recall, at each threshold; NaN without anomalous pixels."""
        return self.outliers / (self.outliers[-1] or np.nan)

    @property
    def fpr(self) -> np.ndarray:
        """False positive rate at each threshold; NaN without inliers."""
        return self.inliers / (self.inliers[-1] or np.nan)

    @property
    def precision(self) -> np.ndarray:
        """Share of anomalous pixels among those that reach each threshold; 1 at the first one, which none reaches."""
        predicted = self.outliers + self.inliers
        return np.where(predicted > 0, self.outliers / np.maximum(predicted, 1), 1.0)

    def score(self, index: np.ndarray | int) -> np.ndarray:
        """Thresholds (float32) in units of the scores."""
        chosen = self.thresholds[np.atleast_1d(index)]
        return lowest_reaching(chosen, self.offset) if self.offset else chosen

    def metrics(self) -> dict[str, float]:
        """The metrics of a split's pixels, as fractions.

        Returns:
            ``AP``: Σ (R_i − R_{i−1}) · P_i over distinct thresholds. ``AUROC``: by trapezoids. ``FPR95``: the false positive
            rate at the highest threshold whose true positive rate is at least 0.95. ``F1``: the best one, and ``threshold``,
            the highest where it is reached. All are NaN if one kind of pixel lacks. Source: SegmentMeIfYouCan,
            ``metrics/pixel_classification.py``, without its binning; scikit-learn's definitions.
        """
        if self.lacks:
            return dict.fromkeys(('AP', 'AUROC', 'FPR95', 'F1', 'threshold'), float('nan'))
        tpr, fpr = self.tpr, self.fpr
        f1 = 2 * self.outliers / (self.outliers + self.inliers + self.outliers[-1])
        best = int(f1.argmax())
        return dict(
            AP=float((np.diff(tpr) * self.precision[1:]).sum()),
            AUROC=float((np.diff(fpr) * (tpr[1:] + tpr[:-1])).sum() / 2),
            FPR95=float(fpr[np.searchsorted(tpr, 0.95)]),
            F1=float(f1[best]),
            threshold=float(self.score(best)[0]),
        )

    def fpr_threshold(self, rate: float) -> float:
        """The lowest threshold whose false positive rate is not above ``rate``; NaN without inliers.

        Raises:
            ValueError: If ``rate`` is not in 0…1.
        """
        _check(rate)
        if not self.inliers[-1]:
            return float('nan')
        return float(self.score(int(np.searchsorted(self.fpr, rate, side='right')) - 1)[0])

    def tpr_threshold(self, rate: float) -> float:
        """The highest threshold whose true positive rate is at least ``rate``; NaN without anomalous pixels.

        Raises:
            ValueError: If ``rate`` is not in 0…1.
        """
        _check(rate)
        return float(self.score(int(np.searchsorted(self.tpr, rate)))[0]) if self.outliers[-1] else float('nan')

    def curve(self, points: int = 1000) -> dict[str, np.ndarray]:
        """Points of the precision/recall and ROC curves, evenly spread over both of their axes.

        Args:
            points: Number of them for each of the two rates; at most twice as many are returned. Default: 1000.

        Returns:
            Arrays ``threshold`` (descending), ``precision``, ``recall``, which is also the true positive rate, and ``fpr``.
            Empty if one kind of pixel lacks.
        """
        if self.lacks:
            return {name: np.empty(0) for name in ('threshold', 'precision', 'recall', 'fpr')}
        steps = np.linspace(0, 1, points)
        index = np.unique(np.concatenate([np.searchsorted(rates, steps) for rates in (self.tpr, self.fpr)]))
        values = dict(precision=self.precision, recall=self.tpr, fpr=self.fpr)
        return dict(threshold=self.score(index), **{name: value[index] for name, value in values.items()})


def _check(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f'A rate is a fraction between 0 and 1, got {rate}.')
