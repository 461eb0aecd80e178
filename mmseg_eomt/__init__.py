"""EoMT with LoRA for MMSegmentation. Importing the package registers its models and hooks with the toolbox."""

from mmseg_eomt.patches import repairs

repairs.apply()

from mmseg_eomt.adapters.peft_folder import is_folder, read_folder  # noqa: E402
from mmseg_eomt.configs import find_own_configs  # noqa: E402
from mmseg_eomt.data import DataCheckHook, EoMTColorJitter, EoMTResize  # noqa: E402
from mmseg_eomt.data.missing import explain_empty_datasets  # noqa: E402
from mmseg_eomt.engine import (  # noqa: E402
    EoMTOptimWrapperConstructor,
    LoRAHook,
    MaskAnnealingHook,
    TwoWarmupsPolyLR,
)
from mmseg_eomt.engine.checkpoints import write_whole_checkpoints  # noqa: E402
from mmseg_eomt.engine.compiling import compile_networks  # noqa: E402
from mmseg_eomt.engine.every_run import check_every_run  # noqa: E402
from mmseg_eomt.models import EoMTHead, EoMTSegmentor, EoMTViT  # noqa: E402
from mmseg_eomt.patches.loading import patch_state_dict_loading  # noqa: E402
from mmseg_eomt.weights.sources import register_folders, register_sources  # noqa: E402

register_sources()
register_folders(is_folder, read_folder)
patch_state_dict_loading()
write_whole_checkpoints()
check_every_run()
compile_networks()
explain_empty_datasets()
find_own_configs()

__version__ = '0.1.0'
__all__ = [
    'DataCheckHook',
    'EoMTColorJitter',
    'EoMTHead',
    'EoMTOptimWrapperConstructor',
    'EoMTResize',
    'EoMTSegmentor',
    'EoMTViT',
    'LoRAHook',
    'MaskAnnealingHook',
    'TwoWarmupsPolyLR',
    '__version__',
]
