"""A config's model without its memory, and the places where a run would look at numbers."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_eomt.adapters.inject import fully_trained_modules, inject
from mmseg_eomt.adapters.precision import reduce_precision
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.memory.ledger import Ledger
from mmseg_eomt.memory.quantized import quantize
from mmseg_eomt.models import losses
from mmseg_eomt.models.query_head import QueryHead


class _Unread(TorchDispatchMode):
    """Lets a model be built without numbers in it: those that its initialisation looks at are 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        return func(*args, **(kwargs or {}))


def build(config: Config) -> nn.Module:
    """The model of a config on the meta device, adapted as its LoRAHook would, in training.

    Raises:
        ValueError: If the model or its adapters cannot be built.
    """
    with torch.random.fork_rng(devices=[]), torch.device('meta'), _Unread():
        model = MODELS.build(config.model)
        for settings in config.get('custom_hooks') or ():
            if settings.get('type') == 'LoRAHook':
                adapt(model, HOOKS.build(settings))
    return model.train()


def adapt(model: nn.Module, hook: LoRAHook) -> None:
    """Put in a hook's adapters, with any first values; on the meta device a base of 8 or 4 bits has its size alone."""
    peft = hook.config_for(model)
    fully_trained = fully_trained_modules(model, peft, hook.trainable_modules)
    if hook.base_precision == 'bf16':
        reduce_precision(model, 'bf16', fully_trained)
    inject(model, peft, hook.trainable_modules, fresh=False)
    if hook.base_precision in ('8bit', '4bit'):
        quantize(model, hook.base_precision)


def fill(model: nn.Module) -> None:
    """Bring a model from the meta device to fake tensors; a ``FakeTensorMode`` is on."""
    done: dict[int, Any] = {}
    for module in model.modules():
        for tensors, wrap in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in done:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype)
                    done[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if wrap else new
                tensors[name] = done[id(tensor)]


def batch_of(size: int, height: int, width: int) -> tuple[Tensor, list[SegDataSample]]:
    """Images, normalised, and samples with labels, as the data preprocessor gives them."""
    images = torch.empty(size, 3, height, width)
    meta = dict(img_shape=(height, width), pad_shape=(height, width), ori_shape=(height, width), padding_size=[0] * 4)
    labels = [torch.zeros(1, height, width, dtype=torch.long) for _ in range(size)]
    return images, [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta) for label in labels]


def attribute(model: nn.Module, ledger: Ledger) -> None:
    """Let the ledger know which part of the model runs."""
    head = getattr(model, 'decode_head', None)
    parts: list[tuple[Any, str]] = [(getattr(model, 'backbone', None), 'backbone'), (head, 'losses')]
    if isinstance(head, QueryHead):
        parts[1] = head, 'joint blocks'
        parts += [(head.upscale, 'mask module'), (head.mask_head, 'mask module'), (head.criterion, 'losses')]
    for module, part in parts:
        if isinstance(module, nn.Module):
            _watch(module, part, ledger)


def _watch(module: nn.Module, part: str, ledger: Ledger) -> None:
    running: list[Any] = []

    def begin(*_: Any) -> None:
        running.append(ledger.running(part))
        running[-1].__enter__()

    def end(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


@contextlib.contextmanager
def assumed_matches(per_image: int) -> Iterator[None]:
    """Let the losses match this many queries per image without looking at costs or labels."""

    def assign(costs: Tensor, targets: losses.SemanticTargets) -> Tensor:
        layers, images, queries, _ = costs.shape
        return costs.new_zeros((layers, images * min(queries, per_image), 3), dtype=torch.long)

    solve = losses.assign
    losses.assign = assign
    try:
        yield
    finally:
        losses.assign = solve


class GpuFunctions(TorchFunctionMode):
    """Functions as a GPU has them, where a CPU's have other types: fake tensors of a GPU need a PyTorch that is made for it.

    Dropout keeps a mask of one byte per element, and norms compute in fp32 under autocast.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, or the GPU's in its place."""
        kwargs = kwargs or {}
        if func is F.dropout:
            x, p, training = (*args, *[kwargs.get(name, value) for name, value in _DROPOUT[len(args) :]])[:3]
            return torch.native_dropout(x, p, True)[0] if training and p else x
        if func is F.layer_norm and torch.is_autocast_enabled('cpu'):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


_DROPOUT: Sequence[tuple[str, Any]] = (('input', None), ('p', 0.5), ('training', True), ('inplace', False))
