"""What a model takes from a checkpoint, whoever loads it: weights fitted, adapters put in, or a clear refusal."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import note_of, take
from mmseg_eomt.adapters.names import adapter_names, is_adapter, plain_name, tuner_layers
from mmseg_eomt.models.arch import arch_of
from mmseg_eomt.weights.arch import ARCH_NOTE, check_noted
from mmseg_eomt.weights.checkpoint import UNKNOWN_SOURCE, Checkpoint
from mmseg_eomt.weights.checkpoint_io import check_kinds, naming
from mmseg_eomt.weights.class_heads import with_class_heads
from mmseg_eomt.weights.fit import check_eomt_parameters, eomt_parameters
from mmseg_eomt.weights.fit_pmt import fit_model


def prepare_state_dict(module: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that a model is to load in place of a checkpoint's; mmengine loads without strictness.

    A model that is loaded by hand (``init_model``, ``MMSegInferencer``, ``load_checkpoint``) is adapted as the checkpoint
    says. In a Runner that is LoRAHook's work, and without it a checkpoint with adapters is refused.

    Args:
        module: Any model, also inside wrappers.
        state_dict: From a checkpoint, with its :class:`~mmseg_eomt.weights.checkpoint.Checkpoint` where that is known.

    Raises:
        RuntimeError: If it has adapters, and the model none or others.
        ValueError: If weights are missing, or of another shape or kind.
    """
    checkpoint, model = Checkpoint.of(state_dict), unwrapped(module)
    with naming(checkpoint.source):
        if not checkpoint.is_fitted:
            state_dict = _fitted(model, state_dict, checkpoint)
        check_kinds(model, state_dict, checkpoint.source)
    return state_dict


def _fitted(model: nn.Module, state_dict: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    note = note_of(dict(state_dict=state_dict, meta=checkpoint.meta), checkpoint.source)
    adapters = [name for name in state_dict if is_adapter(name)]
    check_noted(checkpoint.meta.get(ARCH_NOTE), arch_of(model), checkpoint.source)
    if checkpoint.purpose == 'init' and (note is not None or adapters):
        raise RuntimeError('init_cfg names a checkpoint with LoRA adapters: it takes a plain one, or one that is merged.')
    if checkpoint.purpose is None and checkpoint.source != UNKNOWN_SOURCE and note is not None:
        return take(model, note, state_dict)
    adapted = tuner_layers(model)
    if (adapters and not adapted) or (checkpoint.purpose and note is not None):
        raise RuntimeError(
            f'The checkpoint has LoRA adapters ({len(adapters)} tensors, such as {next(iter(adapters), "none")}), but the '
            f'model has none: add LoRAHook to custom_hooks as in training, or merge them with tools/adapter.py.'
        )
    if not adapted:
        return fit_model(model, state_dict)
    if checkpoint.meta.get('merged'):
        raise RuntimeError('The checkpoint has its adapters merged in, and the model has some too: build a plain one.')
    if not adapters:
        own, given = ({plain_name(name): v for name, v in part.items()} for part in (_base_of(model), state_dict))
        check_eomt_parameters(own, given, checkpoint.source, checkpoint.starts_training)
        state_dict = with_class_heads(model, state_dict, checkpoint)
    return state_dict


def _base_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the EoMT parts of an adapted model, without the adapters."""
    adapters = set(adapter_names(model))
    return {name: parameter for name, parameter in eomt_parameters(model).items() if name not in adapters}


def unwrapped(module: nn.Module) -> nn.Module:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    inner: Any = module
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner
