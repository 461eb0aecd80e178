"""EoMT with LoRA for MMSegmentation. Importing the package registers its models and hooks with the toolbox."""

from mmseg_eomt.patches import repairs

repairs.apply()

from mmseg_eomt import anomaly, domains  # noqa: E402
from mmseg_eomt.adapters.peft_folder import is_folder, read_folder  # noqa: E402
from mmseg_eomt.data import DataCheckHook, EoMTAugment, EoMTColorJitter, EoMTResize  # noqa: E402
from mmseg_eomt.engine import EoMTOptimWrapperConstructor, LoRAHook, MaskAnnealingHook, TwoWarmupsPolyLR  # noqa: E402
from mmseg_eomt.engine.checkpoints import register_whole_checkpoints  # noqa: E402
from mmseg_eomt.models import EoMTHead, EoMTSegmentor, EoMTViT, LateralViT, PMTHead  # noqa: E402
from mmseg_eomt.patches import decoding, runner  # noqa: E402
from mmseg_eomt.tasks import MultiTaskSegmentor  # noqa: E402
from mmseg_eomt.weights.sources import register_folders, register_sources  # noqa: E402

register_sources()
register_folders(is_folder, read_folder)
register_whole_checkpoints()
runner.apply()
decoding.apply()

__version__ = '0.1.0'
__all__ = [
    'DataCheckHook',
    'EoMTAugment',
    'EoMTColorJitter',
    'EoMTHead',
    'EoMTOptimWrapperConstructor',
    'EoMTResize',
    'EoMTSegmentor',
    'EoMTViT',
    'LateralViT',
    'LoRAHook',
    'MaskAnnealingHook',
    'MultiTaskSegmentor',
    'PMTHead',
    'TwoWarmupsPolyLR',
    '__version__',
    'anomaly',
    'domains',
]
