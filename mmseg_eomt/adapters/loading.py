"""No adapter weights are dropped with a log line: mmengine's loader knows checkpoints that have some."""

import contextvars
import functools
from collections import OrderedDict

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import note_of, take
from mmseg_eomt.adapters.names import is_adapter, tuner_layers

_TAG = 'mmseg_eomt.adapter'
_in_runner = contextvars.ContextVar('in_runner', default=False)


def tagged(checkpoint):
    """The checkpoint, with its note of adapters where the loader of its weights sees it."""
    found = note_of(checkpoint) if isinstance(checkpoint, dict) else None
    if found is not None and 'state_dict' in checkpoint:
        weights = OrderedDict(checkpoint['state_dict'])
        weights._metadata = {**getattr(checkpoint['state_dict'], '_metadata', {}), _TAG: found}
        checkpoint['state_dict'] = weights
    return checkpoint


def load_adapters_or_refuse() -> None:
    """Let mmengine load a checkpoint with adapters right, or refuse it; a second call changes nothing.

    mmengine loads without strictness: a model without adapters would take none of the adapted layers, and only a long log
    line would say so. ``init_model``, ``MMSegInferencer`` and ``load_checkpoint`` all load through the function that is
    wrapped here; it adapts their model as the checkpoint says. In a Runner that is LoRAHook's work, and without it the
    checkpoint is refused.
    """
    load = mmengine_checkpoint.load_state_dict
    if hasattr(load, '__wrapped__'):
        return

    @functools.wraps(load)
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args, **kwargs) -> None:
        given = getattr(state_dict, '_metadata', {}).get(_TAG)
        adapters = [name for name in state_dict if is_adapter(name)]
        if given is not None and not _in_runner.get():
            state_dict = take(_inner(module), given, state_dict)
        elif given is not None or (adapters and not tuner_layers(module)):
            raise RuntimeError(
                f'The checkpoint has LoRA adapters ({len(adapters)} tensors, such as {next(iter(adapters), "none")}), but '
                f'the model has none: add LoRAHook to custom_hooks as in training, or merge them with tools/adapter.py.'
            )
        return load(module, state_dict, *args, **kwargs)

    mmengine_checkpoint.load_state_dict = load_state_dict
    for runner in (Runner, FlexibleRunner):
        for name in ('load_checkpoint', 'resume'):
            setattr(runner, name, _marked(getattr(runner, name)))


def _marked(method):
    @functools.wraps(method)
    def call(*args, **kwargs):
        token = _in_runner.set(True)
        try:
            return method(*args, **kwargs)
        finally:
            _in_runner.reset(token)

    return call


def _inner(module: nn.Module) -> nn.Module:
    while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
        module = module.module
    return module
