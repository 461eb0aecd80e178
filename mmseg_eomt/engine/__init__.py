"""What plugs into a Runner."""

from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook

__all__ = ['LoRAHook', 'MaskAnnealingHook']
