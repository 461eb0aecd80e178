"""Losses for anomalies: of pasted outliers, and class losses with a margin."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.anomaly.scores import OF_CLASSES
from mmseg_eomt.models.layers import recomputed
from mmseg_eomt.models.losses import MaskClassificationLoss

INLIER, OUTLIER, NEITHER = 0, 1, 255  # of the truth that OutlierLoss is given
SCORES = ('rba', 'rba_sum', 'max', 'energy')
KINDS = ('squared_hinge', 'bce')
LAYERS = ('all', 'last')
EPSILON = 1e-6  # under the root of a sine, whose slope would be infinite at a cosine of 1


@MODELS.register_module()
class OutlierLoss(nn.Module):
    """Lowers the anomaly scores of inliers and raises those of outliers.

    With s the score of a pixel, α ``inlier_max`` and β ``outlier_min``, the squared hinge is
    ½ · [mean over inliers of relu(s − α)² + mean over outliers of relu(β − s)²], or, in a batch without outliers,
    mean over inliers of relu(s − α)². ``'bce'`` is ½ · the binary cross entropy of s as a logit, averaged over inliers and
    outliers. The batch is that of all processes in one iteration; gradient accumulation adds up such batches, so that an
    outlier in one of n weighs 1 / n of what it would in one batch of all.

    Args:
        score: ``'rba'``, ``'rba_sum'``, ``'max'`` or ``'energy'``: :mod:`~mmseg_eomt.anomaly.scores`. Default: ``'rba'``.
        kind: ``'squared_hinge'`` or ``'bce'``. Default: ``'squared_hinge'``.
        inlier_max: α: inliers are not to score higher. The defaults of both are those of RbA's released configs: an RbA
            score is below 0, so that only outliers have a loss. RbA's code has −1 and −0.1 as defaults. Default: 0.0.
        outlier_min: β: outliers are not to score lower. Default: 5.0.
        loss_weight: Default: 1.0.
        layers: ``'all'`` supervised layers or the ``'last'``. Default: ``'all'``.
        align_corners: Of the bilinear resizing of scores to the labels' size; RbA's code has it. Default: False, as this
            project resizes masks.

    Raises:
        ValueError: If an option is unknown, or α above β.

    Source: RbA (Nayal et al., ICCV 2023); public implementation ``mask2former/modeling/criterion.py``. There, ``'bce'``
    counts ignored pixels as inliers.
    """

    def __init__(
        self,
        score: str = 'rba',
        kind: str = 'squared_hinge',
        inlier_max: float = 0.0,
        outlier_min: float = 5.0,
        loss_weight: float = 1.0,
        layers: str = 'all',
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (('score', score, SCORES), ('kind', kind, KINDS), ('layers', layers, LAYERS)):
            if value not in known:
                raise ValueError(f'{name} of OutlierLoss is one of {", ".join(known)}; got {value!r}.')
        if kind == 'squared_hinge' and inlier_max > outlier_min:
            raise ValueError(f'inlier_max must not be above outlier_min, got {inlier_max} and {outlier_min}.')
        self.score = score
        self.kind = kind
        self.inlier_max = inlier_max
        self.outlier_min = outlier_min
        self.loss_weight = loss_weight
        self.layers = layers
        self.align_corners = align_corners

    def forward(
        self, mask_logits: list[Tensor], weights: list[Tensor], truth: Tensor, extent: tuple[float, float] = (1.0, 1.0)
    ) -> list[dict[str, Tensor]]:
        """Loss of each layer.

        Args:
            mask_logits: (B, Q, h, w) per layer.
            weights: Class probabilities (B, Q, K) per layer, without that of "no object".
            truth: (B, H, W): 1 outlier, 0 inlier, 255 neither.
            extent: Fraction of the maps' width and height that ``truth`` covers, where images are padded right and below.

        Returns:
            A dict per layer with ``loss_outlier``, 0 and joined to the graph where no pixel counts; with ``layers='last'``
            the others are empty. The last one also holds ``inlier_score`` and ``outlier_score``, mean scores for the log
            alone, where any process has such pixels.
        """
        inlier, outlier = truth == INLIER, truth == OUTLIER
        counts = torch.stack((inlier.sum(), outlier.sum())).float()
        all_reduce(counts, 'mean')  # over it, local sums become the global means once DDP has averaged their gradients
        layers: list[dict[str, Tensor]] = [{} for _ in mask_logits]
        # sums over many pixels, and squares, would be wrong in half precision
        with torch.autocast(truth.device.type, enabled=False):
            for i in range(len(layers) - 1 if self.layers == 'last' else 0, len(layers)):
                # nothing of the size of the masks is kept for the backward pass
                small = recomputed(True, self.scores, mask_logits[i], weights[i])
                scores = self.resize(small, truth.shape[-2:], extent)
                layers[i]['loss_outlier'] = self.loss_weight * self.loss(scores, inlier, outlier, counts)
            layers[-1].update(mean_scores(scores.detach(), inlier, outlier, counts))
        return layers

    def scores(self, mask_logits: Tensor, weights: Tensor) -> Tensor:
        """Scores (B, h, w) at the size of the masks."""
        exact = torch.promote_types(mask_logits.dtype, torch.float32)
        sums = torch.einsum('bqk,bqhw->bkhw', weights.to(exact), mask_logits.to(exact).sigmoid())
        return OF_CLASSES[self.score](sums)

    def resize(self, scores: Tensor, size: tuple[int, ...], extent: tuple[float, float]) -> Tensor:
        """Scores (B, h, w) in a size (H, W) that covers ``extent`` of them."""
        height, width = size
        padded = (round(height / extent[1]), round(width / extent[0]))
        resized = F.interpolate(scores[:, None], padded, mode='bilinear', align_corners=self.align_corners)
        return resized.squeeze(1)[:, :height, :width]

    def loss(self, scores: Tensor, inlier: Tensor, outlier: Tensor, counts: Tensor) -> Tensor:
        """Unweighted loss of scores (B, H, W); ``counts`` are the mean numbers of inliers and outliers of a process."""
        if self.kind == 'bce':
            terms = F.binary_cross_entropy_with_logits(scores, outlier.to(scores), reduction='none')
            return _sum(terms, inlier | outlier) / _at_least_some(counts.sum()) / 2
        of_inliers = _sum((scores - self.inlier_max).relu().square(), inlier) / _at_least_some(counts[0])
        of_outliers = _sum((self.outlier_min - scores).relu().square(), outlier) / _at_least_some(counts[1])
        # asked of the device: all processes agree, and none waits
        return (of_inliers + of_outliers) * torch.where(counts[1] > 0, 0.5, 1.0)


def mean_scores(scores: Tensor, inlier: Tensor, outlier: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Mean scores of the inliers and outliers of all processes, of those that there are."""
    sums = torch.stack((_sum(scores, inlier), _sum(scores, outlier)))
    all_reduce(sums, 'mean')
    names = ('inlier_score', 'outlier_score')
    return {name: total / number for name, total, number in zip(names, sums, counts) if number > 0}


def _sum(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0).sum()


def _at_least_some(count: Tensor) -> Tensor:
    """A count to divide by: that of nothing is 1."""
    return torch.where(count > 0, count, 1)


class MarginClassificationLoss(MaskClassificationLoss):
    """Class losses with an additive angular margin on the logits of a :class:`.CosineClassHead`.

    Where a query is matched to a class, its logit s · cos θ becomes s · cos(θ + m), or s · (cos θ − m · sin m) where θ + m
    would be above π: it has to be nearer to the class than the cross entropy alone asks for. Matching, the other classes and
    "no object" are without margin, and so is whatever is predicted.

    Args:
        margin: m in radians, from 0 to π / 2. :class:`~mmseg_eomt.anomaly.margin.MarginWarmupHook` raises it from 0 in the
            first part of a run.
        kwargs: As of :class:`.MaskClassificationLoss`.

    Attributes:
        current_margin: Buffer: the margin in this iteration.
        scales: (K,), those of the class head, which whoever calls has to set: they may change when weights are loaded.

    Raises:
        ValueError: If the margin is out of range.

    Source: ArcFace (Deng et al., CVPR 2019), section 2.1.
    """

    current_margin: Tensor

    def __init__(self, margin: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= margin < math.pi / 2:
            raise ValueError(f'margin of cosine_head is an angle from 0 to below π / 2 in radians, got {margin}.')
        self.margin = margin
        self.register_buffer('current_margin', torch.tensor(float(margin)), persistent=False)
        self.scales = torch.ones(self.num_classes)

    def class_loss(self, class_logits: list[Tensor], matches: Tensor) -> Tensor:
        """As of :class:`.MaskClassificationLoss`, with the margin on each matched query's logit of its class."""
        logits = torch.stack(class_logits).float()
        layer = torch.arange(len(logits), device=logits.device)[:, None].expand_as(matches[..., 0])
        images, queries, classes = matches.unbind(-1)
        matched = (layer, images, queries, classes)
        scales = self.scales.to(logits)[classes]
        lost = scales * margin_cost(logits[matched] / scales, self.current_margin)
        return super().class_loss(list(logits.index_put(matched, -lost, accumulate=True)), matches)


def margin_cost(cosines: Tensor, margin: Tensor) -> Tensor:
    """What a margin takes from cosines: cos θ − cos(θ + m), and m · sin m where θ + m is above π; 0 for a margin of 0.

    The angle itself is not computed: the slope of the arc cosine is infinite at 1, and in half precision long before.
    """
    sines = ((1 - cosines.square()).clamp(min=0) + EPSILON).sqrt()
    cost = cosines * (1 - margin.cos()) + sines * margin.sin()
    return torch.where(cosines > -margin.cos(), cost, margin * margin.sin())
