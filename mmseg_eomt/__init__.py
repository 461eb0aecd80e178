"""EoMT with LoRA for MMSegmentation. Importing the package registers its models and hooks with the toolbox."""

from mmseg_eomt import compat

compat.apply()

from mmseg_eomt.adapters.guard import refuse_dropped_adapters  # noqa: E402
from mmseg_eomt.engine import LoRAHook, MaskAnnealingHook  # noqa: E402
from mmseg_eomt.models import EoMTHead, EoMTViT  # noqa: E402

refuse_dropped_adapters()

__version__ = '0.1.0'
__all__ = ['EoMTHead', 'EoMTViT', 'LoRAHook', 'MaskAnnealingHook', '__version__']
