"""No adapter weights are dropped with a log line: mmengine's loader knows checkpoints that have some."""

import contextvars
from collections import OrderedDict
from collections.abc import Callable

from mmengine.model import BaseTTAModel, PretrainedInit, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import note_of, take
from mmseg_eomt.adapters.names import is_adapter, tuner_layers
from mmseg_eomt.models.arch import arch_of, check_noted, noted_arch
from mmseg_eomt.patching import patch
from mmseg_eomt.weights.fit import fit_checkpoint

_TAG = 'mmseg_eomt.adapter'
_MERGED = 'mmseg_eomt.merged'
_SOURCE = 'mmseg_eomt.source'
_ARCH = 'mmseg_eomt.arch'
_caller = contextvars.ContextVar('caller', default=None)  # 'Runner', 'init_cfg', or whoever loads a checkpoint by hand
_starting = contextvars.ContextVar('starting', default=False)  # whether it loads what training starts from


def tagged(checkpoint, source: str = ''):
    """The checkpoint, with its notes of adapters and arch and its source where the loader of its weights sees them."""
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        return checkpoint
    tags = {_TAG: note_of(checkpoint), _MERGED: checkpoint.get('meta', {}).get('merged'), _SOURCE: source}
    tags[_ARCH] = noted_arch(checkpoint)
    weights = OrderedDict(checkpoint['state_dict'])
    weights._metadata = {**getattr(checkpoint['state_dict'], '_metadata', {}), **tags}
    checkpoint['state_dict'] = weights
    return checkpoint


def is_tagged(weights: dict[str, Tensor]) -> bool:
    """Whether a state dict has adapters that nobody has put into place yet."""
    return getattr(weights, '_metadata', {}).get(_TAG) is not None


def load_adapters_or_refuse() -> None:
    """Let mmengine load a checkpoint with adapters right, or refuse it; a second call changes nothing.

    mmengine loads without strictness: a model without adapters would take none of the adapted layers, and only a long log
    line would say so. ``init_model``, ``MMSegInferencer`` and ``load_checkpoint`` all load through the function that is
    wrapped here; it adapts their model as the checkpoint says. In a Runner that is LoRAHook's work, and without it the
    checkpoint is refused.
    """
    patch(mmengine_checkpoint, 'load_state_dict', _knowing_adapters)
    for runner in (Runner, FlexibleRunner):
        for name in ('load_checkpoint', 'resume'):
            patch(runner, name, _by_runner)
    patch(PretrainedInit, '__call__', _by_init_cfg)


def _knowing_adapters(load: Callable) -> Callable:
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args, **kwargs) -> None:
        tags = getattr(state_dict, '_metadata', {})
        given, model = tags.get(_TAG), unwrapped(module)
        adapters = [name for name in state_dict if is_adapter(name)]
        check_noted(tags.get(_ARCH), arch_of(model), tags.get(_SOURCE) or 'The checkpoint')
        if given is not None and _caller.get() is None:
            state_dict = take(model, given, state_dict)
        elif _caller.get() == 'init_cfg' and (given is not None or adapters):
            raise RuntimeError(
                'init_cfg names a checkpoint with LoRA adapters: it takes a plain one, or one that is merged.'
            )
        elif given is not None or (adapters and not tuner_layers(module)):
            raise RuntimeError(
                f'The checkpoint has LoRA adapters ({len(adapters)} tensors, such as {next(iter(adapters), "none")}), but '
                f'the model has none: add LoRAHook to custom_hooks as in training, or merge them with tools/adapter.py.'
            )
        elif tags.get(_MERGED) and tuner_layers(model):
            raise RuntimeError('The checkpoint has its adapters merged in, and the model has some too: build a plain one.')
        elif not adapters:
            state_dict = fit_checkpoint(model, state_dict, _starting.get(), tags.get(_SOURCE) or 'The checkpoint')
        return load(module, state_dict, *args, **kwargs)

    return load_state_dict


def _by_runner(method: Callable) -> Callable:
    return _marked(method, 'Runner')


def _by_init_cfg(method: Callable) -> Callable:
    return _marked(method, 'init_cfg')


def _marked(method: Callable, caller: str) -> Callable:
    def call(self, *args, **kwargs):
        token, starting = _caller.set(caller), _starting.set(starts_training(self))
        try:
            return method(self, *args, **kwargs)
        finally:
            _caller.reset(token)
            _starting.reset(starting)

    return call


def starts_training(owner: Runner | FlexibleRunner | PretrainedInit) -> bool:
    """Whether what it loads is what a new training run starts from, rather than what is resumed or predicts."""
    if isinstance(owner, PretrainedInit):
        return True
    return isinstance(getattr(owner, 'optim_wrapper', None), OptimWrapper) and not owner._resume


def unwrapped(module: nn.Module) -> nn.Module:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
        module = module.module
    return module
