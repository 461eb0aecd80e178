"""The decode head for anomalies: what it is asked for beside classes, and how it learns from pasted outliers."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from mmseg.registry import MODELS
from torch import Tensor

from mmseg_eomt.anomaly.class_heads import CosineClassHead, NegativeClassHead
from mmseg_eomt.anomaly.losses import NEITHER, MarginClassificationLoss
from mmseg_eomt.anomaly.scores import ScoreChannels
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.losses import MaskClassificationLoss


@MODELS.register_module()
class EoMTAnomalyHead(EoMTHead):
    """:class:`EoMTHead` that predicts anomaly scores and learns from outliers.

    Without further arguments it is an :class:`EoMTHead`, and each reads the other's checkpoints.

    Args:
        args: As of :class:`EoMTHead`.
        anomaly_scores: Names of the scores that :class:`.EoMTAnomalySegmentor` puts into its samples, such as
            ``['rba', 'eam', 'rba@0.5']``: see :mod:`~mmseg_eomt.anomaly.scores`. Default: none.
        outlier_index: Label id of outliers, which :class:`.PasteOutliers` writes. They are no class: in the targets of all
            masks they are ignored, as ``ignore_index`` is. Default: 254.
        loss_outlier: ``dict(type='OutlierLoss', …)``, for every supervised layer. Default: None.
        cosine_head: Arguments of a :class:`.CosineClassHead` in place of the linear class head, and ``margin``, in radians:
            ``dict(scale=16.0, margin=0.2)``. Default: None.
        negative_class: Whether outliers are a class of their own, which is learned as the others are and never predicted
            (UNO). Default: False.
        kwargs: As of :class:`EoMTHead`.

    Raises:
        ValueError: If ``outlier_index`` is a class or ``ignore_index``, or two options exclude each other; or, in training,
            if a label is no class.
    """

    def __init__(
        self,
        *args: Any,
        anomaly_scores: Sequence[str] = (),
        outlier_index: int = 254,
        loss_outlier: dict | None = None,
        cosine_head: dict | None = None,
        negative_class: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if outlier_index < self.num_classes or outlier_index == self.ignore_index:
            raise ValueError(
                f'outlier_index must be no class (0 to {self.num_classes - 1}) and not ignore_index={self.ignore_index}, '
                f'got {outlier_index}.'
            )
        if cosine_head is not None and negative_class:
            raise ValueError('cosine_head and negative_class exclude each other: set one of them.')
        if negative_class and self.ignore_index == self.num_classes:
            raise ValueError(
                f'negative_class has the label {self.num_classes} in training: set another ignore_index, as 255.'
            )
        self.channels = ScoreChannels(anomaly_scores, self.num_classes)
        self.out_channels = self.num_classes + self.channels.number
        self.outlier_index = outlier_index
        self.loss_outlier = None if loss_outlier is None else MODELS.build(loss_outlier)
        self.negative_class = negative_class
        dims = self.arch.embed_dims
        if negative_class:
            self.class_head = NegativeClassHead(dims, self.num_classes)
            self.criterion = MaskClassificationLoss(**_settings(self.criterion, self.num_classes + 1))
        if cosine_head is not None:
            options = dict(cosine_head)
            margin = options.pop('margin', 0.2)
            self.class_head = CosineClassHead(dims, self.num_classes, **options)
            settings = _settings(self.criterion, self.num_classes)
            self.criterion = MarginClassificationLoss(margin, **settings)

    def is_no_class(self, labels: Tensor) -> Tensor:
        """Where label maps hold ``ignore_index`` or ``outlier_index``."""
        return super().is_no_class(labels) | (labels == self.outlier_index)

    def query_weights(self, class_logits: Tensor) -> Tensor:
        """Weights (B, Q, K + E') of the queries' masks in class scores and in what anomaly scores need beside them."""
        known = class_logits.softmax(-1)[..., : self.num_classes]
        if not self.channels.number:
            return known
        return torch.cat((known, self.channels.weights(class_logits)), dim=-1)

    def layer_losses(
        self, mask_logits: list[Tensor], class_logits: list[Tensor], labels: Tensor, extent: tuple[float, float]
    ) -> list[dict[str, Tensor]]:
        """Losses of each layer, with ``loss_outlier`` where there is one; of the last one also the mean scores."""
        outliers = labels == self.outlier_index
        targets = labels.masked_fill(outliers, self.ignore_index)
        if self.negative_class:
            unknown = labels == self.num_classes  # of a label map with one more class: it would pass for an outlier
            targets = labels.masked_fill(unknown, -1).masked_fill(outliers, self.num_classes)
        if isinstance(self.criterion, MarginClassificationLoss):
            self.criterion.scales = cast(Tensor, self.class_head.scales)  # PEFT may have put a copy of the head in its place
        layers = super().layer_losses(mask_logits, class_logits, targets, extent)
        if self.loss_outlier is not None:
            known = [classes.softmax(-1)[..., : self.num_classes] for classes in class_logits]
            truth = outliers.int().masked_fill(labels == self.ignore_index, NEITHER)
            for layer, losses in zip(layers, self.loss_outlier(mask_logits, known, truth, extent)):
                layer.update(losses)
        return layers


def _settings(criterion: MaskClassificationLoss, num_classes: int) -> dict[str, Any]:
    """Arguments of a criterion like another one, for a number of classes."""
    names = ('num_points', 'oversample_ratio', 'importance_sample_ratio', 'class_weight', 'mask_weight', 'dice_weight')
    settings = {name: getattr(criterion, name) for name in names}
    return dict(settings, num_classes=num_classes, no_object_weight=float(criterion.class_weights[-1]))
