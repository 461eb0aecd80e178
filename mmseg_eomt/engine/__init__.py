"""What plugs into a Runner."""

from mmseg_eomt.engine.layer_decay import EoMTOptimWrapperConstructor
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook
from mmseg_eomt.engine.two_warmups import TwoWarmupsPolyLR

__all__ = ['EoMTOptimWrapperConstructor', 'LoRAHook', 'MaskAnnealingHook', 'TwoWarmupsPolyLR']
