"""What comes before the model: augmentation, and checks of the data."""

from mmseg_eomt.data.check import DataCheckHook
from mmseg_eomt.data.color_jitter import EoMTColorJitter

__all__ = ['DataCheckHook', 'EoMTColorJitter']
