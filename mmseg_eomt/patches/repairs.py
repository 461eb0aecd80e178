"""What lets the official toolbox run on today's PyTorch: each repair with its reason and when it can go.

:func:`apply` is called once, when ``mmseg_eomt`` is imported and before anything of the toolbox is.
"""

import atexit
import functools
import gc
import importlib.machinery
import importlib.util
import math
import sys
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any, NoReturn

from mmseg_eomt.patches import patch
from mmseg_eomt.requirements import check_packages


def apply() -> None:
    """Check the packages and apply every repair; a second call changes nothing.

    Raises:
        ImportError: If a package is missing, too old or too new, with the command that repairs it.
    """
    check_packages()
    register_missing_ops()
    register_log_history()
    patch_distributed_cpu()
    patch_activation_checkpointing()
    patch_flop_count()
    register_attention_flops()
    register_visualizer()
    register_forks()


class _MissingOps(types.ModuleType):
    """Stands where mmcv's compiled ops would be; using one says what to install."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing_op(*_: Any, **__: Any) -> NoReturn:
            raise RuntimeError(
                f'{name} is a compiled op of mmcv, and mmcv-lite has none. EoMT needs none either; for a model that does, '
                f'replace it: pip uninstall mmcv-lite; pip install mmcv==2.1.0'
            )

        return missing_op


def register_missing_ops() -> None:
    """Let ``import mmseg.models`` pass without compiled ops.

    mmsegmentation 1.2.2 imports ``mmcv.ops`` at load, and that looks each op up in ``mmcv._ext``, which mmcv-lite lacks.
    Goes when mmsegmentation imports ops where it uses them. With full mmcv nothing is done.
    """
    name = 'mmcv._ext'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    module = _MissingOps(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)  # mmengine asks for it
    sys.modules[name] = module


def register_log_history() -> None:
    """Let ``torch.load(weights_only=True)``, the default since PyTorch 2.6, read mmengine's own checkpoints.

    They hold the log history: ``HistoryBuffer``, which pickles its statistics as ``getattr(HistoryBuffer, name)``, and NumPy
    arrays, as do class names and palettes of some datasets. Only these are allowed, arrays of numbers and text, and
    ``getattr`` for ``HistoryBuffer`` alone. Goes when mmengine stores plain values.
    """
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    def history_buffer_getattr(owner: type, name: str) -> Any:
        if owner is not HistoryBuffer:
            raise TypeError(f'A checkpoint asks for {name!r} of {owner!r}: refused, only weights and log history are read.')
        return getattr(owner, name)

    # NumPy 1.26 has an empty _core
    core: Any = getattr(np, '_core' if int(np.__version__.split('.')[0]) > 1 else 'core')
    dtypes = {type(np.dtype(kind)) for kind in '?bhilqBHILQefdU'}  # no objects, which would bring anything along
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (history_buffer_getattr, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            # pickled under the one name by NumPy 1 and under the other by NumPy 2
            *((core.multiarray._reconstruct, f'numpy.{name}.multiarray._reconstruct') for name in ('core', '_core')),
            *((core.multiarray.scalar, f'numpy.{name}.multiarray.scalar') for name in ('core', '_core')),
        ]
    )


def patch_activation_checkpointing() -> None:
    """Let ``activation_checkpointing`` reach the adapters of the first blocks.

    mmengine calls PyTorch's ``checkpoint`` without ``use_reentrant``: an old default gives no gradients where no input needs
    one, as behind a frozen stem, and since PyTorch 2.9 the call is an error. Goes when mmengine passes ``False``.
    """
    from mmengine.runner import activation_checkpointing

    patch(activation_checkpointing, 'checkpoint', _not_reentrant)


def _not_reentrant(checkpoint: Callable) -> Callable:
    return functools.partial(checkpoint, use_reentrant=False)


def patch_distributed_cpu() -> None:
    """Let several processes train on a machine without a GPU, over gloo.

    mmengine's PyTorch and Slurm launchers set the CUDA device first, and hand DDP a device index, whatever the machine has.
    Goes when mmengine asks for the device. With a GPU nothing is done.
    """
    from mmengine.device import get_device
    from mmengine.dist import utils
    from mmengine.model import MMDistributedDataParallel

    if get_device() == 'cpu':
        patch(utils, '_init_dist_pytorch', _over_gloo)
        patch(utils, '_init_dist_slurm', _over_gloo)
        patch(MMDistributedDataParallel, '__init__', _without_device)


def _over_gloo(init: Callable) -> Callable:
    import torch

    def init_over_gloo(backend: str, **kwargs: Any) -> None:
        set_device, torch.cuda.set_device = torch.cuda.set_device, lambda device: None
        try:
            init('gloo', **kwargs)
        finally:
            torch.cuda.set_device = set_device
        atexit.register(_leave_group)

    return init_over_gloo


def _leave_group() -> None:
    """Nobody else does. A gloo thread that lets go of its last tensor while Python ends aborts a process whose work is done.

    The threads end with the last owner of the group, and the DDP model of a Runner, which is a cycle, is one.
    """
    import torch

    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _without_device(init: Callable) -> Callable:
    def init_on_cpu(self: Any, module: Any, *args: Any, device_ids: list | None = None, **kwargs: Any) -> None:
        init(self, module, *args, **kwargs)

    return init_on_cpu


def patch_flop_count() -> None:
    """Let the toolbox's ``get_flops`` run.

    mmsegmentation 1.2.2 gives mmengine the input and its shape, of which mmengine 0.10 takes one. Goes when it gives one.
    """
    from mmengine import analysis

    patch(analysis, 'get_model_complexity_info', _of_input)


def _of_input(get_complexity: Callable) -> Callable:
    def complexity_of_input(model: Any, input_shape: Any = None, inputs: Any = None, **kwargs: Any) -> dict:
        return get_complexity(model, input_shape if inputs is None else None, inputs, **kwargs)

    return complexity_of_input


def register_attention_flops() -> None:
    """Let FLOP counts include ``scaled_dot_product_attention``, which mmengine does not know. Goes when it does."""
    from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
    from mmengine.analysis.jit_handles import get_shape

    def attention_flops(inputs: list, outputs: list) -> int:
        queries, keys, values = (get_shape(tensor) for tensor in inputs[:3])
        return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])  # a multiplication with its sum is one

    _DEFAULT_SUPPORTED_FLOP_OPS['aten::scaled_dot_product_attention'] = attention_flops


def register_visualizer() -> None:
    """Let ``browse_dataset`` draw.

    It hands over a view of an image, channels first in memory, on which OpenCV refuses to write. Goes when mmsegmentation
    hands over a copy.
    """
    import numpy as np
    from mmseg.registry import VISUALIZERS
    from mmseg.visualization import SegLocalVisualizer

    class CopyingVisualizer(SegLocalVisualizer):
        """mmseg's, which draws on a copy."""

        def add_datasample(self, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> None:
            """Draw a sample."""
            super().add_datasample(name, np.ascontiguousarray(image), *args, **kwargs)

    VISUALIZERS.register_module(name='SegLocalVisualizer', module=CopyingVisualizer, force=True)


def register_forks() -> None:
    """Let configs inherit ``mmseg::…`` where ``onedl-mmsegmentation`` is installed: mmengine asks for ``mmsegmentation``.

    Goes when the forks name themselves.
    """
    from mmengine.config import utils

    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        utils.MODULE2PACKAGE['mmseg'] = 'mmseg'  # the name to import is enough to find it
