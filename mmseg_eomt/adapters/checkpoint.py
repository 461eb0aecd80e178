"""Checkpoints with adapters: what is noted in them, what they leave out, and how a model takes them."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_eomt.adapters.base import differing, named_weights, restore_base
from mmseg_eomt.adapters.config import as_values, changes_base, differences, from_values
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.adapters.names import adapter_names, is_adapter, plain_name, tuner_layers
from mmseg_eomt.adapters.precision import ReducedLinear, quantized_layers

if TYPE_CHECKING:
    from peft import PeftConfig

KEY = 'adapter'  # of the note in a checkpoint's meta
UNKNOWN_BASE: dict[str, Any] = dict(init_cfg={}, load_from=None, fingerprints={})


def note(
    config: 'PeftConfig | None',
    trainable_modules: Sequence[str],
    base: dict[str, Any],
    complete: bool,
    base_precision: str = 'fp32',
) -> dict[str, Any]:
    """What a checkpoint says of its adapters, in plain values.

    Args:
        config: PEFT's config; None if nothing is targeted.
        trainable_modules: Modules trained beside the adapters.
        base: As :func:`~.base.describe_base` returned.
        complete: Whether the base weights are in the checkpoint.
        base_precision: How they were kept in memory (:mod:`~.precision`).
    """
    return dict(
        peft=as_values(config) if config else None,
        trainable_modules=list(trainable_modules),
        base=base,
        complete=complete,
        base_precision=base_precision,
    )


def note_of(checkpoint: dict | None) -> dict[str, Any] | None:
    """A loaded checkpoint's note; None for a plain one.

    One with adapters but without a note, as other code may write it, is of unknown config; it holds its base if it has
    the layers below the adapters.
    """
    if checkpoint is None:
        return None
    found = checkpoint.get('meta', {}).get(KEY)
    if found is None and any(is_adapter(name) for name in weights_of(checkpoint)):
        complete = any('.base_layer.' in name for name in weights_of(checkpoint))
        return note(None, [], UNKNOWN_BASE, complete)
    return found


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict of a loaded checkpoint, with or without mmengine's other entries."""
    return checkpoint.get('state_dict', checkpoint)


def left_out(model: nn.Module, base: dict[str, Any]) -> set[str]:
    """Names in an adapted model's state dict that can be found again: frozen weights that came from a file.

    Base weights that the method has changed (PiSSA and the like) cannot, at least not to the last bit.
    """
    changed = any(changes_base(as_values(config)) for config in getattr(model, 'peft_config', {}).values())
    names = {
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and plain_name(name) in base['fingerprints']
        and not (changed and '.base_layer.' in name)
    }
    quantized = tuple(f'{name}.' for name in quantized_layers(model) if f'{name}.weight' in names)
    own = model.state_dict()
    grids = {f'{name[:-5]}grid' for name in names if name.endswith('pos_embed')} & own.keys()
    return names | grids | {name for name in own if name.startswith(quantized)}  # with their scales


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


def adapt(model: nn.Module, given: dict[str, Any], brought: Iterable[str] = ()) -> None:
    """Prepare a plain model for a checkpoint with adapters: base weights, then adapters as noted.

    Args:
        model: The plain model.
        given: The checkpoint's note.
        brought: Names of the weights in the checkpoint (:func:`brought_by`).

    Raises:
        OSError: If a file of the base is not there.
        ValueError: If the base is another one, or the note lacks the adapters' config.
    """
    if given['peft'] is None and given['base'] is UNKNOWN_BASE:
        raise ValueError(
            'The checkpoint has adapters but does not say which: load it with LoRAHook in custom_hooks, set as in training.'
        )
    if not given['complete']:
        restore_base(model, given['base'], brought)
    matches = inject(model, from_values(given['peft']) if given['peft'] else None, given['trainable_modules'])
    layers = sum(len(names) for names in matches.values())
    print_log(f'Adapters in {layers} layers, as noted in the checkpoint', logger='current')


def brought_by(state_dict: dict[str, Tensor]) -> set[str]:
    """A plain model's names of the weights in a state dict, ours or PEFT's."""
    return {plain_name(name.removeprefix('base_model.model.')) for name in state_dict}


def completed(model: nn.Module, state_dict: dict[str, Tensor], prefix: str = '', new_run: bool = False) -> dict[str, Tensor]:
    """A checkpoint's weights with what it left out, taken from the adapted model.

    Args:
        model: The adapted model, its base restored.
        state_dict: The checkpoint's.
        prefix: What the names in it begin with, such as an EMA copy's ``'module.'``.
        new_run: Whether training starts from it: modules that are trained whole may then be missing in an adapter of PEFT's,
            or be of another shape, and start as they are in the model.

    Raises:
        RuntimeError: If the checkpoint's weights are not those that the model needs.
    """
    from_peft = any(name.startswith('base_model.model.') for name in state_dict)
    if from_peft:
        from mmseg_eomt.adapters.files import from_peft_names

        state_dict = from_peft_names(model, state_dict)
    own = {f'{prefix}{name}': value for name, value in model.state_dict().items()}
    trained = {f'{prefix}{name}' for name, parameter in model.named_parameters() if parameter.requires_grad}
    may_start_anew = trained - {f'{prefix}{name}' for name in adapter_names(model)} if new_run else set()
    absent = sorted(trained - state_dict.keys() - (may_start_anew if from_peft else set()))
    unknown = sorted(name for name in state_dict.keys() - own.keys() if name.startswith(prefix))
    other = [
        f'{name}: checkpoint {tuple(value.shape)}, model {tuple(own[name].shape)}'
        for name, value in state_dict.items()
        if name in own and value.shape != own[name].shape and not name.endswith('pos_embed')
    ]
    anew = [line for line in other if line.split(':')[0] in may_start_anew]
    if anew:
        print_log(f'Of another shape, and made anew: {"; ".join(anew)}', logger='current')
        dropped = {line.split(':')[0] for line in anew}
        state_dict = {name: value for name, value in state_dict.items() if name not in dropped}
        other = [line for line in other if line not in anew]
    problems = [
        f'lacks {len(absent)} of the {len(trained)} weights that are trained here, such as {absent[:3]}' if absent else '',
        f'has {len(unknown)} weights that the model has not, such as {unknown[:3]}' if unknown else '',
        f'has {len(other)} weights of another shape, such as {"; ".join(other[:2])}' if other else '',
    ]
    if any(problems):
        raise RuntimeError(
            f'The checkpoint {", and ".join(filter(None, problems))}: set the model, target_modules and trainable_modules '
            f'as they were in training.'
        )
    return OrderedDict({**own, **state_dict})


def take(model: nn.Module, given: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a model is to load from a checkpoint with adapters; a plain model is adapted for it first.

    Raises:
        OSError: If a file of the base is not there.
        RuntimeError: If the checkpoint's weights are not those that the model needs.
        ValueError: If config or base are not those of training, with what differs.
    """
    if not tuner_layers(model):
        adapt(model, given, brought_by(state_dict))
    else:
        check_note(given, model.peft_config.get('default'), 'The checkpoint')
        if not given['complete']:
            check_same_base(model, given)
    return completed(model, state_dict)


def check_same_base(model: nn.Module, given: dict[str, Any]) -> None:
    """Make sure that an adapted model stands on the base that a checkpoint was trained on.

    Layers whose base weights the method itself changes (PiSSA and the like), or that are kept in fewer bits, cannot be
    compared.

    Raises:
        ValueError: If it does not, with what differs.
    """
    layers = tuner_layers(model) if changes_base(given['peft'] or {}) else {}
    reduced = [name for name, module in model.named_modules() if isinstance(module, ReducedLinear)] + quantized_layers(model)
    skipped = {plain_name(name) for name in (*layers, *reduced)}
    base = given['base']
    compared = {n: noted for n, noted in base['fingerprints'].items() if n.rpartition('.')[0] not in skipped}
    wrong = list(differing(named_weights(model), dict(base, fingerprints=compared)))
    if wrong:
        raise ValueError(
            f'The adapters were trained on another base: {len(wrong)} of {len(compared)} weights differ '
            f'({"; ".join(wrong[:2])}).'
        )
