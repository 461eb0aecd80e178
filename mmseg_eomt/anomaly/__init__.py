"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.datasets import AnomalyDataset
from mmseg_eomt.anomaly.frames import find_presets
from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.held_out import HeldOutClassesDataset
from mmseg_eomt.anomaly.losses import OutlierLoss
from mmseg_eomt.anomaly.margin import MarginWarmupHook
from mmseg_eomt.anomaly.metric import AnomalyMetric
from mmseg_eomt.anomaly.paste import PasteOutliers
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor

__all__ = [
    'AnomalyDataset',
    'AnomalyMetric',
    'EoMTAnomalyHead',
    'EoMTAnomalySegmentor',
    'HeldOutClassesDataset',
    'MarginWarmupHook',
    'OutlierLoss',
    'PasteOutliers',
    'find_presets',
]
