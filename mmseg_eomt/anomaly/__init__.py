"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.coco import CocoInstances
from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.outlier_sources import OUTLIER_SOURCES, Cutout, CutoutFolder, DatasetRegions, MaskedImages
from mmseg_eomt.anomaly.paste import PasteOutliers
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor
from mmseg_eomt.anomaly.training_patches import TrainingPatches

__all__ = [
    'OUTLIER_SOURCES',
    'CocoInstances',
    'Cutout',
    'CutoutFolder',
    'DatasetRegions',
    'EoMTAnomalyHead',
    'EoMTAnomalySegmentor',
    'MaskedImages',
    'PasteOutliers',
    'TrainingPatches',
]
