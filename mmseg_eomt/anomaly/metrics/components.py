"""SegmentMeIfYouCan's component metrics: whether each anomaly is found, and what is found is one.

Source: Chan et al., SegmentMeIfYouCan, NeurIPS 2021 Datasets and Benchmarks, section 3; its ``instance_segmentation.py``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mmseg_eomt.anomaly.metrics.counts import ANOMALY, IGNORED

IOU_THRESHOLDS = np.linspace(0.25, 0.75, 11)


@dataclass(frozen=True)
class Sizes:
    """Which components count, by their pixels.

    Attributes:
        prediction: Smaller predicted components are dropped.
        truth: Smaller components of the truth are ignored, as is what is predicted there.
    """

    prediction: int
    truth: int


PRESETS = dict(anomaly=Sizes(prediction=500, truth=100), obstacle=Sizes(prediction=50, truth=10))  # of its two tracks


@dataclass(frozen=True)
class FrameComponents:
    """How well the components of an image match.

    Attributes:
        siou: Adjusted IoU of each true component (T,).
        ppv: Share of each predicted component (P,) that is anomalous, its positive predictive value.
    """

    siou: np.ndarray
    ppv: np.ndarray


def match_components(predicted: np.ndarray, labels: np.ndarray, sizes: Sizes) -> FrameComponents:
    """Compare the predicted components of an image with the true ones. Pixels are connected by sides and corners.

    sIoU of a true component is the IoU of it and the union of the predicted components that touch it, whose pixels on other
    true components do not count. PPV of a predicted component is the share of its pixels on true components.

    Args:
        predicted: bool (H, W), ``scores >= threshold``. What is ignored is not predicted.
        labels: (H, W): 0 inlier, 1 anomaly, 255 ignored.
        sizes: Which components count: one of ``PRESETS``.
    """
    truth, small = _components(labels == ANOMALY, sizes.truth)
    found, _ = _components(predicted & (labels != IGNORED), sizes.prediction)
    counted = (labels != IGNORED) & ~small
    truth, found = truth[counted], found[counted]
    pairs = np.ravel_multi_index((truth, found), (truth.max(initial=0) + 1, found.max(initial=0) + 1))
    table = np.bincount(pairs, minlength=(truth.max(initial=0) + 1) * (found.max(initial=0) + 1))
    table = table.reshape(truth.max(initial=0) + 1, -1)  # pixels by true and by predicted component; 0 is none
    shared = table[1:, 1:]
    beside = table[0, 1:]  # of each predicted component, on no true one
    siou = shared.sum(1) / (table[1:].sum(1) + (shared > 0) @ beside)
    found_sizes = table[:, 1:].sum(0)
    left = found_sizes > 0  # not all of it on ignored components
    return FrameComponents(siou, shared.sum(0)[left] / found_sizes[left])


def _components(mask: np.ndarray, min_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers 1, 2, … of a mask's components (H, W), 0 elsewhere, and where those are that are too small to get one."""
    components, _ = ndimage.label(mask, np.ones((3, 3)))
    large = np.bincount(components.ravel()) >= min_pixels
    large[0] = False
    numbers = np.where(large, large.cumsum(), 0)[components]
    return numbers, mask & (numbers == 0)


def pool_components(frames: Sequence[FrameComponents]) -> dict[str, float]:
    """Component metrics of a split, as fractions; the order of the images does not change a bit of them.

    Returns:
        ``sIoU``: mean of the true components, ``PPV``: mean of the predicted ones. ``F1@25``, ``F1@30``, … ``F1@75``:
        2·TP / (2·TP + FN + FP), where a true component is TP if its sIoU is at least 0.25, … and FN otherwise, and a
        predicted one is FP if its PPV is below. ``mean_F1``: their mean. NaN where there is no component of the kind.
    """
    siou = np.concatenate([np.empty(0), *(frame.siou for frame in frames)])
    ppv = np.concatenate([np.empty(0), *(frame.ppv for frame in frames)])
    f1 = [_f1(siou, ppv, threshold) for threshold in IOU_THRESHOLDS]
    names = [f'F1@{round(100 * threshold)}' for threshold in IOU_THRESHOLDS]
    return dict(sIoU=_mean(siou), PPV=_mean(ppv), **dict(zip(names, f1)), mean_F1=_mean(f1))


def _f1(siou: np.ndarray, ppv: np.ndarray, threshold: float) -> float:
    true, missed, false = (siou >= threshold).sum(), (siou < threshold).sum(), (ppv < threshold).sum()
    number = 2 * true + missed + false
    return float(2 * true / number) if len(siou) + len(ppv) else math.nan


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Their exact sum, rounded once, over their number: it does not depend on their order."""
    return math.fsum(values) / len(values) if len(values) else math.nan
