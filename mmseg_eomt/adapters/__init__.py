"""PEFT adapters on a segmentor, or on any other module."""

from mmseg_eomt.adapters.config import lora_config, peft_config
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.adapters.merge import merge
from mmseg_eomt.adapters.peft_folder import load_adapter, save_adapter, set_adapter
from mmseg_eomt.adapters.separate_qkv import separate_qkv
from mmseg_eomt.adapters.summary import summarise

__all__ = [
    'inject',
    'load_adapter',
    'lora_config',
    'merge',
    'peft_config',
    'save_adapter',
    'separate_qkv',
    'set_adapter',
    'summarise',
]
