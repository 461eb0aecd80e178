"""Scores of a split's anomalous and other pixels, collected image by image: counted in constant memory, or kept."""

from abc import ABC, abstractmethod
from typing import TypeVar

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce
from torch import Tensor

from mmseg_eomt.anomaly.metrics.ranking import Ranking, values_of

INLIER, ANOMALY, IGNORED = 0, 1, 255
BITS = 22  # of float32's 32 that are counted: sign, exponent and 13 of the fraction, so that bins are 0.012 % wide
BINS = 1 << BITS
Same = TypeVar('Same', bound='PixelScores')


class PixelScores(ABC):
    """What is known of the scores of a split's pixels.

    Args:
        name: Of the score, for errors. Default: ``'score'``.
        offset: What is subtracted from scores before they are counted. Default: 0.
    """

    def __init__(self, name: str = 'score', offset: float = 0.0) -> None:
        self.name = name
        self.offset = offset

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """Add the pixels of an image, or part of them.

        Args:
            scores: Anomaly scores of any shape, the higher the more anomalous.
            labels: Of the same shape, on the same device: 0 inlier, 1 anomaly, 255 ignored.

        Raises:
            ValueError: If the shapes differ, a label is none of these, or a score of a pixel that counts is not finite.
        """
        check_labels(scores, labels)
        counted = labels != IGNORED
        values = scores[counted].float()
        wrong = values.numel() - int(values.isfinite().sum())
        if wrong:
            raise ValueError(f'The score {self.name!r} is NaN or infinite at {wrong} of {values.numel()} pixels.')
        self._add(values, labels[counted] == ANOMALY)

    @abstractmethod
    def _add(self, values: Tensor, anomalous: Tensor) -> None:
        """Add finite float32 scores (N,); ``anomalous`` is bool (N,)."""

    @abstractmethod
    def merge(self: Same, other: Same) -> None:
        """Add the pixels of other images."""

    @abstractmethod
    def gather(self) -> None:
        """Add the pixels of all processes, which all have to call this."""

    @abstractmethod
    def ranking(self) -> Ranking:
        """How many pixels reach each threshold: metrics, thresholds and curves are read from it."""

    def metrics(self) -> dict[str, float]:
        """``AP``, ``AUROC``, ``FPR95``, ``F1``, ``threshold``: see :meth:`.Ranking.metrics`."""
        return self.ranking().metrics()

    def fpr_threshold(self, rate: float) -> float:
        """The lowest threshold whose false positive rate is not above ``rate``: see :meth:`.Ranking.fpr_threshold`."""
        return self.ranking().fpr_threshold(rate)

    def tpr_threshold(self, rate: float) -> float:
        """The highest threshold whose true positive rate is at least ``rate``: see :meth:`.Ranking.tpr_threshold`."""
        return self.ranking().tpr_threshold(rate)

    def curve(self, points: int = 1000) -> dict[str, np.ndarray]:
        """Points of the precision/recall and ROC curves: see :meth:`.Ranking.curve`."""
        return self.ranking().curve(points)


class ScoreCounts(PixelScores):
    """Numbers of pixels by the leading 22 bits of their score, which need 67 MB whatever the number of pixels.

    AP and FPR95 are exact to 1e-4 if ``offset`` is the score of sure inliers (:meth:`.Score.inlier`): float32 tells the most
    values apart around 0. A threshold is the lowest value of a bin, so that ``score >= threshold`` holds for exactly the
    pixels that were counted.
    """

    def __init__(self, name: str = 'score', offset: float = 0.0) -> None:
        super().__init__(name, offset)
        self.counts = torch.zeros(2, BINS, dtype=torch.int64)  # of inliers, of anomalous pixels; by ascending score

    def _add(self, values: Tensor, anomalous: Tensor) -> None:
        bits = (values - self.offset + 0.0).view(torch.int32)  # −0.0 + 0.0 is 0.0
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # in the order of the values
        bins = (keys >> (32 - BITS)) + BINS // 2 + BINS * anomalous
        with torch.inference_mode(False):  # or they could not be added to later
            self.counts = self.counts.to(values.device)
        # 16 times as fast for two million pixels as a bincount of all bins, on a CPU
        self.counts.view(-1).index_add_(0, bins, bins.new_ones((), dtype=torch.int64).expand(len(bins)))

    def merge(self, other: 'ScoreCounts') -> None:
        """Add the pixels of other images.

        Raises:
            ValueError: If their scores were shifted by another offset.
        """
        if other.offset != self.offset:
            raise ValueError(f'Counts with an offset of {other.offset} cannot be added to those with {self.offset}.')
        self.counts += other.counts.to(self.counts.device)

    def gather(self) -> None:
        """Add the counts of all processes, which all have to call this. They are on the CPU afterwards."""
        all_reduce(self.counts)
        self.counts = self.counts.cpu()

    def ranking(self) -> Ranking:
        """How many pixels reach each bin."""
        counts = self.counts.cpu().numpy()
        filled = np.flatnonzero(counts.any(0))[::-1]
        bins = np.concatenate([filled[:1] + 1 if filled.size else [BINS // 2], filled])
        inliers, outliers = (np.concatenate([[0], kind[filled].cumsum()]) for kind in counts)
        thresholds = values_of((bins - BINS // 2) << (32 - BITS))
        return Ranking(thresholds, outliers, inliers, self.offset)


class SortedScores(PixelScores):
    """All scores themselves, to be sorted: exact, and 4 bytes for each pixel in the memory of each process.

    Args:
        name: As of :class:`PixelScores`.
        offset: Ignored; thresholds and scores are as they were given.
    """

    def __init__(self, name: str = 'score', offset: float = 0.0) -> None:
        super().__init__(name)
        self.values: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # of inliers, of anomalous pixels

    def _add(self, values: Tensor, anomalous: Tensor) -> None:
        for kind, chosen in enumerate((~anomalous, anomalous)):
            self.values[kind].append(values[chosen].cpu().numpy())

    def merge(self, other: 'SortedScores') -> None:
        """Add the pixels of other images."""
        for kind, parts in enumerate(other.values):
            self.values[kind].extend(parts)

    def gather(self) -> None:
        """Add the scores of all processes, which all have to call this."""
        everywhere = all_gather_object(self.values)
        self.values = tuple([part for values in everywhere for part in values[kind]] for kind in (0, 1))  # type: ignore

    def ranking(self) -> Ranking:
        """How many pixels reach each distinct score."""
        kinds = [np.sort(np.concatenate([np.empty(0, np.float32), *parts])) for parts in self.values]
        ascending = np.unique(np.concatenate([np.unique(values) for values in kinds]))
        beyond = np.nextafter(ascending[-1:], np.float32(np.inf)) if ascending.size else np.zeros(1, np.float32)
        thresholds = np.concatenate([beyond, ascending[::-1]])
        inliers, outliers = (values.size - np.searchsorted(values, thresholds) for values in kinds)
        return Ranking(thresholds, outliers, inliers)


def check_labels(scores: Tensor, labels: Tensor) -> None:
    """Raise ValueError if labels are not those of anomalies, or of another shape than the scores."""
    if scores.shape != labels.shape:
        raise ValueError(
            f'The scores of an image have the shape {tuple(scores.shape)} and its labels {tuple(labels.shape)}, and they '
            'must have the same: in the test pipeline, LoadAnnotations comes after Resize.'
        )
    wrong = labels[(labels != INLIER) & (labels != ANOMALY) & (labels != IGNORED)]
    if wrong.numel():
        given = ', '.join(map(str, wrong.unique().tolist()[:5]))
        raise ValueError(
            f'Labels of anomalies are 0 (inlier), 1 (anomaly) and 255 (ignored), got {given}: the dataset must be an '
            'AnomalyDataset or a HeldOutClassesDataset.'
        )
