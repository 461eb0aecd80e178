"""Test-time augmentation that averages class scores and anomaly scores as they are."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_eomt.anomaly.segmentor import FIELD


@MODELS.register_module()
class EoMTAnomalyTTAModel(BaseTTAModel):
    """Mean of an image's predictions under several augmentations: of the class scores, and of the anomaly scores.

    The toolbox's ``SegTTAModel`` averages the softmax of the class scores. Those of an EoMT are no logits: they are about 1
    for a sure class and all about 0 for "no object", which a softmax makes look alike. Anomaly scores are lost there
    altogether. Use this one in its place::

        tta_model = dict(type='EoMTAnomalyTTAModel')

    A merged sample has the mean class scores as ``seg_logits``, their argmax as ``pred_sem_seg`` and, where the model
    predicts anomaly scores (:class:`.EoMTAnomalySegmentor`), the mean of each map. Scores that :func:`.anomaly_maps`
    computes from the class scores are those of the mean class scores.

    Args:
        module: The segmentor or its settings, as of mmengine's ``BaseTTAModel``.
        data_preprocessor: As of ``BaseTTAModel``.
    """

    def merge_preds(self, data_samples_list: Sequence[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """Merge the predictions of each image.

        Args:
            data_samples_list: For each image, its samples under all augmentations: in the size of the original image, and
                flipped back, as the segmentor leaves them.

        Returns:
            A sample for each image, with the labels and meta information of its first one that is not flipped.
        """
        return [_merge(samples) for samples in data_samples_list]


def _merge(samples: Sequence[SegDataSample]) -> SegDataSample:
    """One sample of all predictions of an image."""
    first = next((sample for sample in samples if not sample.metainfo.get('flip')), samples[0])
    scores = torch.stack([sample.seg_logits.data for sample in samples]).mean(0)
    merged = SegDataSample(metainfo=first.metainfo)
    merged.set_data(dict(seg_logits=PixelData(data=scores), pred_sem_seg=PixelData(data=scores.argmax(0, keepdim=True))))
    if 'gt_sem_seg' in first:
        merged.set_data(dict(gt_sem_seg=first.gt_sem_seg))
    if FIELD in first:
        maps = PixelData(data=torch.stack([sample.get(FIELD).data for sample in samples]).mean(0))
        maps.set_field(first.get(FIELD).names, 'names', field_type='metainfo')
        merged.set_data({FIELD: maps})
    return merged
