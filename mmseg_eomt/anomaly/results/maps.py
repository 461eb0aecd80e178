"""Anomaly score maps as files and as components: fixed limits of each score, 16-bit values, connected regions."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from mmseg_eomt.anomaly.scores import Score

STEPS = 2**16 - 1  # between the values of a 16-bit image


class Limits(NamedTuple):
    """Fixed limits of a score, so that files and colours of different images and models mean the same.

    Attributes:
        low: The lowest value that a 16-bit image tells apart: where queries add up to twice a sure class, or the least
            possible value. What is below it, of more overlapping queries, is clipped.
        inlier: Where a model is sure of one class (:meth:`.Score.inlier`).
        high: The highest value. For most scores it is that of a pixel without any class.
    """

    low: float
    inlier: float
    high: float


def limits_of(score: Score, num_classes: int) -> Limits:
    """The limits of a score of a model of K classes; a temperature does not change them."""
    inlier = score.inlier(num_classes)
    low = dict(rba=2 * inlier, rba_sum=-2.0, max=-1.0, energy=-math.log(math.e**2 + num_classes - 1), eam=-1.0, uno=-2.0)
    high = dict(rba=0.0, rba_sum=0.0, entropy=math.log(num_classes + 1), energy=-math.log(num_classes))
    return Limits(low.get(score.name, 0.0), inlier, high.get(score.name, 1.0))


def to_uint16(scores: np.ndarray, limits: Limits) -> np.ndarray:
    """Scores as values 0…65535 between ``limits.low`` and ``limits.high``, rounded to the nearest.

    Raises:
        ValueError: If one is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f'The score is NaN at {int(np.isnan(scores).sum())} of {scores.size} pixels.')
    share = (scores.astype(np.float64) - limits.low) / (limits.high - limits.low)
    return (share.clip(0, 1) * STEPS).round().astype(np.uint16)


def from_uint16(values: np.ndarray, limits: Limits) -> np.ndarray:
    """Scores (float32) of the values of a 16-bit image; apart from the original by up to half a step, or clipped."""
    return (limits.low + values.astype(np.float64) / STEPS * (limits.high - limits.low)).astype(np.float32)


@dataclass(frozen=True)
class Component:
    """A connected region of pixels that reach the threshold; diagonal neighbours are connected.

    Attributes:
        box: Column and row of its upper left pixel, width and height, in pixels.
        area: Number of pixels.
        mean_score: Of its pixels.
        max_score: Of its pixels.
    """

    box: tuple[int, int, int, int]
    area: int
    mean_score: float
    max_score: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(asdict(self), box=list(self.box))


def find_components(scores: np.ndarray, threshold: float, min_area: int = 1) -> tuple[np.ndarray, list[Component]]:
    """Regions whose pixels reach a threshold.

    Args:
        scores: (H, W), float32.
        threshold: Pixels with ``score >= threshold`` are anomalous.
        min_area: Smaller regions are dropped. Default: 1 pixel, all are kept.

    Returns:
        The mask (H, W), bool, of all regions, and the regions, largest first.
    """
    number, ids, stats, _ = cv2.connectedComponentsWithStats((scores >= threshold).astype(np.uint8), connectivity=8)
    sums = np.bincount(ids.ravel(), scores.ravel().astype(np.float64), number)
    highest = ndimage.maximum(scores, ids, range(number))
    kept = [i for i in range(1, number) if stats[i, cv2.CC_STAT_AREA] >= min_area]
    found = [
        Component(
            box=tuple(stats[i, :4].tolist()),
            area=int(stats[i, cv2.CC_STAT_AREA]),
            mean_score=float(sums[i] / stats[i, cv2.CC_STAT_AREA]),
            max_score=float(highest[i]),
        )
        for i in kept
    ]
    chosen = np.zeros(number, bool)
    chosen[kept] = True
    return chosen[ids], sorted(found, key=lambda component: -component.area)
