"""What comes before the model: augmentation, resizing, and checks of the data."""

from mmseg_eomt.data.check import DataCheckHook
from mmseg_eomt.data.color_jitter import EoMTColorJitter
from mmseg_eomt.data.resize import EoMTResize

__all__ = ['DataCheckHook', 'EoMTColorJitter', 'EoMTResize']
