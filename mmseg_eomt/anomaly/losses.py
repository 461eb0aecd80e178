"""Losses for anomalies: of pasted outliers, and class losses with a margin."""

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.anomaly.class_heads import CosineClassHead
from mmseg_eomt.models.losses import MaskClassificationLoss

NEITHER = 255  # of the truth that OutlierLoss is given: 1 outlier, 0 inlier


@MODELS.register_module()
class OutlierLoss(nn.Module):
    """Raises the scores of outliers."""

    def forward(
        self, mask_logits: list[Tensor], weights: list[Tensor], truth: Tensor, extent: tuple[float, float] = (1.0, 1.0)
    ) -> list[dict[str, Tensor]]:
        """Loss of each layer."""
        raise NotImplementedError


class MarginClassificationLoss(MaskClassificationLoss):
    """Class losses with an additive angular margin."""

    def __init__(self, class_head: CosineClassHead, margin: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
