"""No adapter weights are dropped with a log line: mmengine's loader knows checkpoints that have some."""

import contextvars
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mmengine.runner
from mmengine.model import BaseTTAModel, PretrainedInit, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner, Runner
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import note_of, take, weights_of
from mmseg_eomt.adapters.names import is_adapter, tuner_layers
from mmseg_eomt.models.arch import arch_of, check_noted, noted_arch
from mmseg_eomt.patching import patch
from mmseg_eomt.weights.files import naming
from mmseg_eomt.weights.fit import SOURCE, fit_checkpoint, is_fitted
from mmseg_eomt.weights.values import check_kinds, check_optimizer

_TAG = 'mmseg_eomt.adapter'
_MERGED = 'mmseg_eomt.merged'
_ARCH = 'mmseg_eomt.arch'
_caller = contextvars.ContextVar('caller', default=None)  # 'Runner', 'resume', 'init_cfg'; None for one who loads by hand
_source = contextvars.ContextVar('source', default='The checkpoint')  # the file that is being loaded, where it is known
_starting = contextvars.ContextVar('starting', default=False)  # whether it loads what training starts from


def tagged(checkpoint: dict[str, Any], source: str = '') -> dict[str, Any]:
    """The checkpoint, with its notes of adapters and arch and its source where the loader of its weights sees them."""
    tags = {_TAG: note_of(checkpoint, source), _MERGED: checkpoint.get('meta', {}).get('merged'), SOURCE: source}
    tags[_ARCH] = noted_arch(checkpoint)
    given = weights_of(checkpoint)
    weights = OrderedDict(given)
    weights._metadata = {**getattr(given, '_metadata', {}), **tags}
    return {**checkpoint, 'state_dict': weights} if 'state_dict' in checkpoint else weights


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
    mmengine.runner.load_state_dict = mmengine_checkpoint.load_state_dict  # another name of the same
    for runner in (Runner, FlexibleRunner):
        patch(runner, 'load_checkpoint', _by_runner)
        patch(runner, 'resume', _by_resuming)
    patch(PretrainedInit, '__call__', _by_init_cfg)


def _knowing_adapters(load: Callable) -> Callable:
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args, **kwargs) -> None:
        source = getattr(state_dict, '_metadata', {}).get(SOURCE) or _source.get()
        with naming(source):
            state_dict = state_dict if is_fitted(state_dict) else _taken(module, state_dict, source)
            check_kinds(unwrapped(module), state_dict, source)
        return load(module, state_dict, *args, **kwargs)

    return load_state_dict


def _taken(module: nn.Module, state_dict: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """What a model is to load of a checkpoint: its adapters are put in first, or refused."""
    tags = getattr(state_dict, '_metadata', {})
    given, model = tags.get(_TAG), unwrapped(module)
    adapters = [name for name in state_dict if is_adapter(name)]
    check_noted(tags.get(_ARCH), arch_of(model), source)
    if given is not None and _caller.get() is None:
        return take(model, given, state_dict)
    if _caller.get() == 'init_cfg' and (given is not None or adapters):
        raise RuntimeError('init_cfg names a checkpoint with LoRA adapters: it takes a plain one, or one that is merged.')
    if given is not None or (adapters and not tuner_layers(module)):
        raise RuntimeError(
            f'The checkpoint has LoRA adapters ({len(adapters)} tensors, such as {next(iter(adapters), "none")}), but the '
            f'model has none: add LoRAHook to custom_hooks as in training, or merge them with tools/adapter.py.'
        )
    if tags.get(_MERGED) and tuner_layers(model):
        raise RuntimeError('The checkpoint has its adapters merged in, and the model has some too: build a plain one.')
    return state_dict if adapters else fit_checkpoint(model, state_dict, _starting.get(), source)


def _by_runner(method: Callable) -> Callable:
    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict[str, Any]:
        resuming = _caller.get() == 'resume'
        with _called_by('resume' if resuming else 'Runner', self, filename):
            checkpoint = method(self, filename, *args, **kwargs)
            if resuming and 'optimizer' in checkpoint:
                check_optimizer(checkpoint['optimizer'], filename)
            return checkpoint

    return load_checkpoint


def _by_resuming(method: Callable) -> Callable:
    def resume(self, filename: str, *args, **kwargs) -> None:
        with _called_by('resume', self, filename):
            method(self, filename, *args, **kwargs)

    return resume


def _by_init_cfg(method: Callable) -> Callable:
    def call(self, module: nn.Module) -> None:
        with _called_by('init_cfg', self, self.checkpoint):
            try:
                method(self, module)
            except AssertionError as error:
                raise ValueError(f'No weights begin with {self.prefix!r}, which prefix of init_cfg asks for.') from error

    return call


@contextmanager
def _called_by(caller: str, owner: Runner | FlexibleRunner | PretrainedInit, source: str) -> Iterator[None]:
    tokens = (
        (_caller, _caller.set(caller)),
        (_starting, _starting.set(starts_training(owner))),
        (_source, _source.set(source)),
    )
    try:
        with naming(source):
            yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


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
