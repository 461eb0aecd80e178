"""Checkpoints with adapters: what is noted in them, what they do not hold, and how a model takes them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmseg_eomt.adapters.base_weights import differing, named_weights, restore_base
from mmseg_eomt.adapters.config import as_values, config_for, differences, peft_errors
from mmseg_eomt.adapters.initial import base_from_starts
from mmseg_eomt.adapters.inject import inject, unchanged_on_error
from mmseg_eomt.adapters.names import (
    adapter_entries,
    adapter_names,
    belongs_to,
    configs_of,
    from_peft_names,
    is_adapter,
    is_in_modules,
    names_in_peft,
    plain_name,
    tuner_layers,
)
from mmseg_eomt.adapters.precision import PRECISIONS, ReducedLinear, quantized_layers
from mmseg_eomt.adapters.starts import changes_base, keeps_start
from mmseg_eomt.weights.checkpoint import Checkpoint
from mmseg_eomt.weights.checkpoint_io import check_kind
from mmseg_eomt.weights.class_heads import convert_class_heads
from mmseg_eomt.weights.compare import compare, refuse

if TYPE_CHECKING:
    from peft import PeftConfig

SET_AS_IN_TRAINING = (
    'set the model, target_modules, blocks and trainable_modules as in training, or use a file that is complete'
)
KEY = 'adapter'  # of the note in a checkpoint's meta
UNKNOWN_BASE: dict[str, Any] = dict(init_cfg={}, load_from=None, fingerprints={})
_INIT_CFG = {'type', 'checkpoint', 'prefix', 'map_location'}  # mmengine's PretrainedInit; more would build other things


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
        base: As :func:`~.base_weights.describe_base` returned.
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


def check_types(found: Any, source: str) -> None:
    """Make sure that a note from a file is one.

    Args:
        found: What stands in the place of the note.
        source: Of the file, for the message.

    Raises:
        ValueError: If it is none, with the first entry that is not as it should be.
    """
    if not isinstance(found, Mapping):
        raise _wrong(source, f'meta[{KEY!r}]', found, 'a dict')
    for entry in ('peft', 'trainable_modules', 'base', 'complete'):
        if entry not in found:
            raise ValueError(f'{source} has no valid note of its adapters: meta[{KEY!r}] lacks {entry}; {_CURE}')
    peft, precision = found['peft'], found.get('base_precision', 'fp32')
    if peft is not None and not (isinstance(peft, Mapping) and isinstance(peft.get('peft_type'), str)):
        raise _wrong(source, 'peft', peft, "None or PEFT's config as a dict with peft_type")
    if not is_list_of_names(found['trainable_modules']):
        raise _wrong(source, 'trainable_modules', found['trainable_modules'], 'a list of names')
    if not isinstance(found['complete'], bool):
        raise _wrong(source, 'complete', found['complete'], 'True or False')
    if precision not in PRECISIONS:
        raise _wrong(source, 'base_precision', precision, f'one of {PRECISIONS}')
    check_base(found['base'], source)


def check_base(base: Any, source: str) -> None:
    """Make sure that a description of the base from a file is one (:func:`~.base_weights.describe_base`).

    Raises:
        ValueError: If it is none, with the first entry that is not as it should be.
    """
    if not (isinstance(base, Mapping) and base.keys() >= UNKNOWN_BASE.keys()):
        raise _wrong(source, 'base', base, f'a dict with {", ".join(UNKNOWN_BASE)}')
    sources, load_from, fingerprints = (base[name] for name in UNKNOWN_BASE)
    if not (isinstance(sources, Mapping) and all(map(_names_a_checkpoint, sources.items()))):
        raise _wrong(source, 'base.init_cfg', sources, "a dict(type='Pretrained', checkpoint='<path>') by module")
    if not (load_from is None or isinstance(load_from, str)):
        raise _wrong(source, 'base.load_from', load_from, 'None or a path')
    if not isinstance(fingerprints, Mapping):
        raise _wrong(source, 'base.fingerprints', fingerprints, 'a dict of a fingerprint by name')
    for name, noted in fingerprints.items():
        if not (isinstance(name, str) and _is_fingerprint(noted)):
            raise _wrong(source, f'base.fingerprints[{name!r}]', noted, 'shape, digest and two numbers')


def is_list_of_names(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _names_a_checkpoint(item: tuple[Any, Any]) -> bool:
    module, part = item
    return (
        isinstance(module, str)
        and isinstance(part, Mapping)
        and part.keys() <= _INIT_CFG
        and part.get('type') == 'Pretrained'
        and isinstance(part.get('checkpoint'), str)
    )


def _is_fingerprint(value: Any) -> bool:
    try:
        _shape, _digest, *numbers = value.split(':')
        return len([float(number) for number in numbers]) == 2
    except (AttributeError, TypeError, ValueError):
        return False


_CURE = 'use an earlier checkpoint, or copy it again.'


def _wrong(source: str, entry: str, value: Any, expected: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) < 60 else f'{shown[:56]}…'
    return ValueError(f'{source} has no valid note of its adapters: {entry} is {shown}, expected {expected}; {_CURE}')


def note_of(checkpoint: dict | None, source: str = '') -> dict[str, Any] | None:
    """A loaded checkpoint's note; None for a plain one.

    One with adapters but without a note, as other code may write it, is of unknown config; it holds its base if it has
    the layers below the adapters.

    Args:
        checkpoint: As it was loaded.
        source: Its file, for messages. Default: what its weights are marked with.

    Raises:
        ValueError: If its ``meta``, or the note in it, is not what a checkpoint has there.
    """
    if checkpoint is None:
        return None
    weights = weights_of(checkpoint)
    source, meta = source or Checkpoint.of(weights).source, checkpoint.get('meta') or {}
    if not isinstance(meta, Mapping):
        raise ValueError(f'{source} is no checkpoint: its meta is a {type(meta).__name__}, not a dict.')
    if KEY in meta:
        check_types(meta[KEY], source)
        return meta[KEY]
    if any(is_adapter(name) for name in weights):
        return note(None, [], UNKNOWN_BASE, any('.base_layer.' in name for name in weights))
    return None


def weights_of(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict of a loaded checkpoint, with or without mmengine's other entries."""
    return checkpoint.get('state_dict', checkpoint)


def left_out(model: nn.Module, base: dict[str, Any]) -> set[str]:
    """Names in an adapted model's state dict that can be found again: frozen weights that came from a file.

    Base weights that the method has changed (PiSSA and the like) cannot, at least not to the last bit, unless what it took
    out of them is kept.
    """
    described = [as_values(config) for config in configs_of(model).values()]
    changed = any(changes_base(values) and not keeps_start(values) for values in described)
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


def adapt(model: nn.Module, given: dict[str, Any], weights: dict[str, Tensor], source: str = 'The checkpoint') -> None:
    """Prepare a plain model for a checkpoint with adapters: base weights, then adapters as noted.

    Args:
        model: The plain model.
        given: The checkpoint's note.
        weights: What is in it.
        source: Its file, for messages.

    Raises:
        OSError: If a file of the base is not there.
        ValueError: If the base is another one, the note lacks the adapters' config, or the model cannot take them.
    """
    if given['peft'] is None and given['base'] is UNKNOWN_BASE:
        raise ValueError(
            f'{source} has adapters but does not say which: load it with LoRAHook in custom_hooks, set as in training.'
        )
    config: Any = config_for(given['peft'], weights, source) if given['peft'] else None
    if config:
        config.inference_mode = False  # of a folder, whose adapters would be frozen, and perhaps nothing left to train
    if not given['complete']:
        restore_base(model, given['base'], base_names(weights), source)
    with peft_errors(source):
        matches = inject(model, config, given['trainable_modules'], fresh=False)
    layers = sum(len(names) for names in matches.values())
    print_log(f'Adapters in {layers} layers, as noted in the checkpoint', logger='current')


def base_names(state_dict: dict[str, Tensor]) -> set[str]:
    """A plain model's names of the weights in a state dict, ours or PEFT's."""
    return {plain_name(name.removeprefix('base_model.model.')) for name in state_dict}


def fill_from_model(
    model: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str = '',
    new_run: bool = False,
    source: str = '',
    modules: Sequence[str] = (),
) -> dict[str, Tensor]:
    """A checkpoint's weights with what it does not hold, taken from the adapted model.

    The base may be missing. The adapters, frozen or not, and the modules trained beside them have to be there.

    Args:
        model: The adapted model, its base restored.
        state_dict: The checkpoint's.
        prefix: What the names in it begin with, such as an EMA copy's ``'module.'``.
        new_run: Whether training starts from it: fully trained modules may then be missing in an adapter of PEFT's, or be
            of another shape, and start as they are in the model.
        source: The file, for messages. Default: what the weights are marked with.
        modules: Those that the file says were trained beside the adapters, also where they are frozen in the model.

    Raises:
        RuntimeError: If the checkpoint's weights are not those that the model needs.
    """
    origin = Checkpoint.of(state_dict)
    source = source or origin.source
    from_peft = any(name.startswith('base_model.model.') for name in state_dict)
    if from_peft:
        state_dict = from_peft_names(model, state_dict)
    own = {f'{prefix}{name}': value for name, value in model.state_dict().items()}
    adapters = {f'{prefix}{name}' for name in _needed_adapters(model, state_dict, from_peft)}
    beside = {f'{prefix}{name}' for name in _trained_beside(model, modules)} - adapters
    if new_run:
        anew = [name for name in state_dict if name in beside and state_dict[name].shape != own[name].shape]
        if anew:
            shapes = [f'{name}: checkpoint {tuple(state_dict[name].shape)}, model {tuple(own[name].shape)}' for name in anew]
            print_log(f'Of another shape, and randomly initialised: {"; ".join(shapes)}', logger='current')
        state_dict = {name: value for name, value in state_dict.items() if name not in anew}
        beside -= {*anew, *(beside if from_peft else ())}
    converted = convert_class_heads(model, state_dict, source, new_run, prefix)
    if str(converted):
        print_log(f'{source}: {converted}', logger='current')
    state_dict, beside = {**state_dict, **converted.values}, beside - converted.absent
    given = {name: value for name, value in state_dict.items() if name in own or name.startswith(prefix)}
    check_adapted(given, own, source, adapters | beside)
    return origin.fitted({**own, **state_dict, **base_from_starts(model, state_dict, prefix, source)})


def check_adapted(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, needed: Collection[str] | None = None
) -> None:
    """Make sure that weights from a file are those that an adapted model takes.

    Args:
        given: From the file.
        own: The model's, of the same names.
        source: The file, for the message.
        needed: Names that have to be given. Default: all of the model's.

    Raises:
        RuntimeError: If some are missing, unknown or of another shape; position embeddings may be.
        ValueError: If some are of integers where the model has floating-point numbers.
    """
    refuse(source, compare(given, own, needed), SET_AS_IN_TRAINING, RuntimeError)
    for name in given.keys() & own.keys():
        check_kind(name, given[name], own[name].dtype, source)


def _needed_adapters(model: nn.Module, state_dict: dict[str, Tensor], from_peft: bool) -> set[str]:
    """Entries of the adapters that a checkpoint is for; PEFT's format omits what PEFT makes again."""
    if from_peft:
        return set(names_in_peft(model).values())
    others = [
        adapter
        for adapter in configs_of(model)
        if adapter != 'default' and not any(belongs_to(name, adapter) for name in state_dict)
    ]
    return {name for name in adapter_entries(model) if not any(belongs_to(name, other) for other in others)}


def _trained_beside(model: nn.Module, modules: Sequence[str]) -> set[str]:
    """Parameters that train in no adapter, or were trained as the file says, and the buffers beside them."""
    whole = [name for name, _ in model.named_modules() if name and name.endswith(tuple(modules))]
    others = {*adapter_names(model), *adapter_entries(model)}
    trained = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or (is_in_modules(name, whole) and '.original_module.' not in name)
    } - others
    parents = {name.rpartition('.')[0] for name in trained}
    return trained | {
        name
        for name, _ in model.named_buffers()
        if name.endswith(('.running_mean', '.running_var', '.scales')) and name.rpartition('.')[0] in parents
    }


def take(model: nn.Module, given: dict[str, Any], state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a model is to load from a checkpoint with adapters; a plain model is adapted for it first.

    Raises:
        OSError: If a file of the base is not there.
        RuntimeError: If the checkpoint's weights are not those that the model needs.
        ValueError: If config or base are not those of training, with what differs.
    """
    source = Checkpoint.of(state_dict).source
    if tuner_layers(model):
        check_note(given, configs_of(model).get('default'), source)
        if not given['complete']:
            check_same_base(model, given, source)
        return fill_from_model(model, state_dict, modules=given['trainable_modules'])
    with unchanged_on_error(model):
        adapt(model, given, state_dict, source)
        return fill_from_model(model, state_dict, modules=given['trainable_modules'])


def check_same_base(model: nn.Module, given: dict[str, Any], source: str = 'The checkpoint') -> None:
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
            f'The adapters of {source} were trained on another base: {len(wrong)} of {len(compared)} weights differ '
            f'({"; ".join(wrong[:2])}).'
        )
