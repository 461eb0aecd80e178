"""What plugs into a Runner."""

from mmseg_eomt.engine.data_wait import DataWaitHook
from mmseg_eomt.engine.feature_cache import FeatureCacheHook
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.optimizer_steps import WarmupCosineLR
from mmseg_eomt.engine.schedules import EoMTOptimWrapperConstructor, MaskAnnealingHook, TwoWarmupsPolyLR
from mmseg_eomt.engine.weight_decay import WeightDecayLogHook

__all__ = [
    'DataWaitHook',
    'EoMTOptimWrapperConstructor',
    'FeatureCacheHook',
    'LoRAHook',
    'MaskAnnealingHook',
    'TwoWarmupsPolyLR',
    'WarmupCosineLR',
    'WeightDecayLogHook',
]
