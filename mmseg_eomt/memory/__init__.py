"""How much memory a run takes, before it runs."""

from mmseg_eomt.memory.predict import Prediction, predict

__all__ = ['Prediction', 'predict']
