"""What a run does with its data: transforms, and checks of every file before the first iteration."""

from mmseg_eomt.data.check import DataCheckHook
from mmseg_eomt.data.fixed_views import FixedViews, ViewSampler
from mmseg_eomt.data.image_cache import LoadImageFromFile
from mmseg_eomt.data.transforms import EoMTColorJitter, EoMTResize

__all__ = [
    'DataCheckHook',
    'EoMTColorJitter',
    'EoMTResize',
    'FixedViews',
    'LoadImageFromFile',
    'ViewSampler',
]
