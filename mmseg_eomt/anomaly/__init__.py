"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.losses import OutlierLoss
from mmseg_eomt.anomaly.margin import MarginWarmupHook
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor

__all__ = ['EoMTAnomalyHead', 'EoMTAnomalySegmentor', 'MarginWarmupHook', 'OutlierLoss']
