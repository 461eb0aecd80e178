"""Anomaly scores beside a segmentor's classes: read from its samples, or predicted by it."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import OptSampleList, SampleList
from torch import Tensor

from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.scores import OF_CLASSES, OF_SHARES, ScoreChannels, parse_scores
from mmseg_eomt.models.segmentor import EoMTSegmentor

FIELD = 'anomaly_scores'  # of a sample: PixelData (E, H, W) with the scores' names


@MODELS.register_module()
class EoMTAnomalySegmentor(EoMTSegmentor):
    """:class:`EoMTSegmentor` whose samples have the anomaly scores that its :class:`EoMTAnomalyHead` is asked for.

    Each sample gets ``anomaly_scores``, PixelData with ``data`` (E, H, W) in the image's size and their ``names``. The class
    scores and labels are those of an :class:`EoMTSegmentor`.
    """

    def postprocess_result(self, seg_logits: Tensor, data_samples: OptSampleList = None) -> SampleList:
        """Samples of a prediction's channels (B, K + E', H, W)."""
        samples = super().postprocess_result(seg_logits, data_samples)
        head = self.decode_head
        if isinstance(head, EoMTAnomalyHead) and head.channels.scores:
            for sample in samples:
                _split(sample, head.channels)
        return samples


def _split(sample: SegDataSample, channels: ScoreChannels) -> None:
    """Keep a sample's class scores as such, and put the anomaly scores beside them."""
    predicted = sample.seg_logits.data
    maps = PixelData(data=channels.maps(predicted), metainfo=dict(names=[str(score) for score in channels.scores]))
    known = predicted[: channels.num_classes]
    sample.set_data({FIELD: maps, 'seg_logits': PixelData(data=known)})
    if channels.number:
        sample.set_data(dict(pred_sem_seg=PixelData(data=known.argmax(0, keepdim=True))))


def anomaly_maps(sample: SegDataSample | dict[str, Any], names: Sequence[str]) -> Tensor:
    """Anomaly scores of a predicted sample of any segmentor.

    Args:
        sample: With ``seg_logits``, which are an EoMT's class scores; or as :class:`EoMTAnomalySegmentor` predicts it. Its
            ``to_dict()`` too, which metrics are given.
        names: Of the scores.

    Returns:
        (E, H, W), in the order of ``names``.

    Raises:
        ValueError: If a score needs the queries, and the model was not asked for it; or shares of classes, and the model
            predicts logits.
    """
    fields = sample.to_dict() if isinstance(sample, SegDataSample) else sample
    class_scores, given = fields['seg_logits']['data'], fields.get(FIELD)
    maps = dict(zip(given['names'], given['data'])) if given else {}
    for score in parse_scores(names):
        if str(score) not in maps and score.needs_queries:
            raise ValueError(
                f'The score {str(score)!r} needs the queries, and this model only gave {list(maps) or "class scores"}: set '
                f"model.type='EoMTAnomalySegmentor' and model.decode_head=dict(type='EoMTAnomalyHead', "
                f"anomaly_scores=['{score}', …]), or ask for a score of the class scores: {', '.join(OF_CLASSES)}."
            )
        if str(score) not in maps:
            if score.name in OF_SHARES:
                _check_scores(class_scores, score.name)
            maps[str(score)] = OF_CLASSES[score.name](class_scores)
    return torch.stack([maps[str(score)] for score in parse_scores(names)])


def _check_scores(class_scores: Tensor, name: str) -> None:
    """Raise ValueError if class scores are logits, which have no shares."""
    lowest = float(class_scores.min())
    if lowest < 0:
        raise ValueError(
            f'The score {name!r} is of class scores from 0 on, and this model predicts logits, down to {lowest:.3g}: ask '
            f'for {", ".join(name for name in OF_CLASSES if name not in OF_SHARES)}.'
        )
