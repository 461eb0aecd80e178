"""The patch of mmengine's function that puts a state dict into a model."""

from collections.abc import Callable

import mmengine.runner
from mmengine.runner import checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.loading import prepare_state_dict
from mmseg_eomt.patches import patch


def patch_state_dict_loading() -> None:
    """Let mmengine fit public weights to an EoMT, put adapters in, and refuse what does not fit.

    mmengine loads without strictness: of weights in another format, of another shape, or of adapted layers it would take
    nothing, and only a long log line would say so. ``init_cfg``, ``load_from``, ``init_model`` and ``MMSegInferencer`` all
    load through this function. State dict hooks of the modules are no way round it: they see neither the file's notes nor
    the names that their module has no place for. Goes when mmengine lets a model prepare what it is given.
    """
    patch(checkpoint, 'load_state_dict', _prepared)
    mmengine.runner.load_state_dict = checkpoint.load_state_dict  # another name of the same


def _prepared(load: Callable) -> Callable:
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args, **kwargs) -> None:
        return load(module, prepare_state_dict(module, state_dict), *args, **kwargs)

    return load_state_dict
