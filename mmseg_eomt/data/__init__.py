"""What a run does with its data: transforms, and checks of every file before the first iteration."""

from mmseg_eomt.data.augment import EoMTAugment
from mmseg_eomt.data.check import DataCheckHook
from mmseg_eomt.data.color_jitter import EoMTColorJitter
from mmseg_eomt.data.fixed_views import FixedViews, ViewSampler
from mmseg_eomt.data.image_cache import LoadImageFromFile
from mmseg_eomt.data.transforms import EoMTResize

__all__ = [
    'DataCheckHook',
    'EoMTAugment',
    'EoMTColorJitter',
    'EoMTResize',
    'FixedViews',
    'LoadImageFromFile',
    'ViewSampler',
]
