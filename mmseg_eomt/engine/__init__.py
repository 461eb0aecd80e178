"""What plugs into a Runner."""

from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook
from mmseg_eomt.engine.optimizer import EoMTOptimWrapperConstructor, TwoWarmupsPolyLR

__all__ = ['EoMTOptimWrapperConstructor', 'LoRAHook', 'MaskAnnealingHook', 'TwoWarmupsPolyLR']
