"""Road anomalies: scores, training with outliers, data and metrics. Everything is off until a config asks for it."""

from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.metric import AnomalyMetric
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor

__all__ = ['AnomalyMetric', 'EoMTAnomalyHead', 'EoMTAnomalySegmentor']
