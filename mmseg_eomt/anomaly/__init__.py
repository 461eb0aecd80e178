"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.data.datasets import AnomalyDataset
from mmseg_eomt.anomaly.data.frames import find_presets
from mmseg_eomt.anomaly.data.held_out import HeldOutClassesDataset
from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.losses import OutlierLoss
from mmseg_eomt.anomaly.margin import MarginWarmupHook
from mmseg_eomt.anomaly.metrics.metric import AnomalyMetric
from mmseg_eomt.anomaly.outliers.coco import CocoInstances
from mmseg_eomt.anomaly.outliers.paste import PasteOutliers
from mmseg_eomt.anomaly.outliers.sources import OUTLIER_SOURCES, CutoutFolder, DatasetRegions, MaskedImages
from mmseg_eomt.anomaly.outliers.training_patches import TrainingPatches
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor
from mmseg_eomt.anomaly.tta import EoMTAnomalyTTAModel

__all__ = [
    'OUTLIER_SOURCES',
    'AnomalyDataset',
    'AnomalyMetric',
    'CocoInstances',
    'CutoutFolder',
    'DatasetRegions',
    'EoMTAnomalyHead',
    'EoMTAnomalySegmentor',
    'EoMTAnomalyTTAModel',
    'HeldOutClassesDataset',
    'MarginWarmupHook',
    'MaskedImages',
    'OutlierLoss',
    'PasteOutliers',
    'TrainingPatches',
    'find_presets',
]
