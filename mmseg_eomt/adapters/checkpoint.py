"""Checkpoints with adapters: what is noted in them, what they leave out, and how a model takes them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_eomt.adapters.base import differing, restore_base
from mmseg_eomt.adapters.config import as_values, changes_base, differences, from_values
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.adapters.names import adapter_names, is_adapter, plain_name, tuner_layers
from mmseg_eomt.adapters.precision import quantized_layers

if TYPE_CHECKING:
    from peft import PeftConfig

KEY = 'adapter'  # of the note in a checkpoint's meta
UNKNOWN_BASE: dict[str, Any] = dict(init_cfg={}, load_from=None, fingerprints={})


def note(config: 'PeftConfig | None', trainable_modules: Sequence[str], base: dict, complete: bool) -> dict[str, Any]:
    """What a checkpoint says of its adapters, in plain values.

    Args:
        config: PEFT's config; None if nothing is targeted.
        trainable_modules: Modules trained beside the adapters.
        base: As :func:`~.base.describe_base` returned.
        complete: Whether the base weights are in the checkpoint.
    """
    return dict(
        peft=as_values(config) if config else None,
        trainable_modules=list(trainable_modules),
        base=base,
        complete=complete,
    )


def note_of(checkpoint: dict | None) -> dict[str, Any] | None:
    """A loaded checkpoint's note; None for a plain one.

    One with adapters but without a note, as other code may write it, is taken to be complete and of unknown config.
    """
    if checkpoint is None:
        return None
    found = checkpoint.get('meta', {}).get(KEY)
    if found is None and any(is_adapter(name) for name in weights_of(checkpoint)):
        return dict(peft=None, trainable_modules=[], base=UNKNOWN_BASE, complete=True)
    return found


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict of a loaded checkpoint, with or without mmengine's other entries."""
    return checkpoint.get('state_dict', checkpoint)


def left_out(model: nn.Module, base: dict[str, Any]) -> set[str]:
    """Names in an adapted model's state dict that can be found again: frozen weights that came from a file."""
    names = {
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and plain_name(name) in base['fingerprints']
    }
    quantized = tuple(f'{name}.' for name in quantized_layers(model) if f'{name}.weight' in names)
    return names | {name for name in model.state_dict() if name.startswith(quantized)}  # with their scales


def check_note(given: dict[str, Any], config: 'PeftConfig | None', source: str) -> None:
    """Compare a checkpoint's note with the config that the model is adapted by.

    Raises:
        ValueError: If they would make different models, with the fields that differ.
    """
    if given['peft'] is None or config is None:
        return
    own = as_values(config)
    found = differences(given['peft'], own)
    if found:
        raise ValueError(
            f'{source} was trained with other adapters than LoRAHook is set to: {"; ".join(found)}. Set the same.'
        )


def adapt(model: nn.Module, given: dict[str, Any]) -> None:
    """Prepare a plain model for a checkpoint with adapters: base weights, then adapters as noted.

    Raises:
        OSError: If a file of the base is not there.
        ValueError: If the base is another one, or the note lacks the adapters' config.
    """
    if given['peft'] is None and given['base'] is UNKNOWN_BASE:
        raise ValueError(
            'The checkpoint has adapters but does not say which: load it with LoRAHook in custom_hooks, set as in training.'
        )
    if not given['complete']:
        restore_base(model, given['base'])
    matches = inject(model, from_values(given['peft']) if given['peft'] else None, given['trainable_modules'])
    layers = sum(len(names) for names in matches.values())
    print_log(f'Adapters in {layers} layers, as noted in the checkpoint', logger='current')


def completed(model: nn.Module, state_dict: dict[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
    """A checkpoint's weights with what it left out, taken from the adapted model.

    An adapter of PEFT's may come without the modules that are trained beside it here: they start from the base's.

    Args:
        model: The adapted model, its base restored.
        state_dict: The checkpoint's.
        prefix: What the names in it begin with, such as an EMA copy's ``'module.'``.

    Raises:
        RuntimeError: If the checkpoint's adapters are not those of the model.
    """
    whole = set(adapter_names(model))
    if any(name.startswith('base_model.model.') for name in state_dict):
        from mmseg_eomt.adapters.files import from_peft_names

        state_dict = from_peft_names(model, state_dict)
    else:
        whole |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {f'{prefix}{name}': value for name, value in model.state_dict().items()}
    absent = sorted({f'{prefix}{name}' for name in whole} - state_dict.keys())
    if absent:
        raise RuntimeError(
            f'The checkpoint lacks {len(absent)} of the {len(whole)} weights that are trained here, such as {absent[:3]}: '
            f'set target_modules and trainable_modules as they were in training.'
        )
    unknown = sorted(name for name in state_dict.keys() - own.keys() if name.startswith(prefix))
    if unknown:
        raise RuntimeError(
            f'The checkpoint has {len(unknown)} weights that the model has not, such as {unknown[:3]}: set target_modules '
            f'and trainable_modules as they were in training.'
        )
    return OrderedDict({**own, **state_dict})


def take(model: nn.Module, given: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a model is to load from a checkpoint with adapters; a plain model is adapted for it first.

    Raises:
        OSError: If a file of the base is not there.
        RuntimeError: If the checkpoint's adapters are not those that the model has.
        ValueError: If config or base are not those of training, with what differs.
    """
    if not tuner_layers(model):
        adapt(model, given)
    else:
        check_note(given, model.peft_config.get('default'), 'The checkpoint')
        if not given['complete']:
            check_same_base(model, given)
    return state_dict if given['complete'] else completed(model, state_dict)


def check_same_base(model: nn.Module, given: dict[str, Any]) -> None:
    """Make sure that an adapted model stands on the base that a checkpoint was trained on.

    Adapted layers whose base weights the method itself changes (PiSSA and the like) cannot be compared.

    Raises:
        ValueError: If it does not, with what differs.
    """
    changed = changes_base(given['peft'] or {})
    parameters = {plain_name(name): value for name, value in model.named_parameters()}
    skipped = {plain_name(name) for name, _ in model.named_parameters() if changed and '.base_layer.' in name}
    base = given['base']
    compared = {name: value for name, value in base['fingerprints'].items() if name not in skipped}
    wrong = list(differing(parameters, dict(base, fingerprints=compared)))
    if wrong:
        raise ValueError(
            f'The adapters were trained on another base: {len(wrong)} of {len(compared)} weights differ '
            f'({"; ".join(wrong[:2])}).'
        )
