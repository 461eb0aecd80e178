"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.coco import CocoInstances
from mmseg_eomt.anomaly.datasets import AnomalyDataset
from mmseg_eomt.anomaly.frames import find_presets
from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.held_out import HeldOutClassesDataset
from mmseg_eomt.anomaly.losses import OutlierLoss
from mmseg_eomt.anomaly.margin import MarginWarmupHook
from mmseg_eomt.anomaly.metric import AnomalyMetric
from mmseg_eomt.anomaly.outlier_sources import OUTLIER_SOURCES, CutoutFolder, DatasetRegions, MaskedImages
from mmseg_eomt.anomaly.paste import PasteOutliers
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor
from mmseg_eomt.anomaly.training_patches import TrainingPatches

__all__ = [
    'OUTLIER_SOURCES',
    'AnomalyDataset',
    'AnomalyMetric',
    'CocoInstances',
    'CutoutFolder',
    'DatasetRegions',
    'EoMTAnomalyHead',
    'EoMTAnomalySegmentor',
    'HeldOutClassesDataset',
    'MarginWarmupHook',
    'MaskedImages',
    'OutlierLoss',
    'PasteOutliers',
    'TrainingPatches',
    'find_presets',
]
