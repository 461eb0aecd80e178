"""The weights below the adapters: where they came from, what they were, and how they are found again."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as runner_checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.names import is_adapter, plain_name
from mmseg_eomt.models.arch import arch_of
from mmseg_eomt.weights.arch import check_noted, noted_arch
from mmseg_eomt.weights.checkpoint import Checkpoint

ROUNDING = 1e-5  # of a tensor's norm
GOLDEN_RATIO = 0.6180339887498949
ROW = 4096


@contextmanager
def watch_loading(model: nn.Module) -> Iterator[set[str]]:
    """Note which parameters are loaded from a state dict while the context is open; their names are in the yielded set.

    What was not loaded has random weights, which no file gives back.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    loaded: set[str] = set()

    def note(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            given = state_dict.get(f'{prefix}{name}')
            if given is None or given.shape != parameter.shape:
                continue
            if given.data_ptr() != parameter.data_ptr():  # not its own value, for what a checkpoint has not
                loaded.add(names[id(parameter)])

    handles = [module.register_load_state_dict_pre_hook(note) for module in model.modules()]
    try:
        yield loaded
    finally:
        for handle in handles:
            handle.remove()


def pretrained_sources(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The entries of ``init_cfg`` that name a checkpoint, by the module that loads it; the model itself is ``''``."""
    sources = {}
    for name, module in model.named_modules():
        init_cfg = getattr(module, 'init_cfg', None)
        for part in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
            if part.get('type') in ('Pretrained', PretrainedInit):
                sources[name] = {**part, 'type': 'Pretrained'}
    return sources


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the running statistics of norms, under a plain model's names."""
    weights = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    buffers = {plain_name(name): buffer for name, buffer in model.named_buffers()}
    statistics = ('running_mean', 'running_var')
    return weights | {name: value for name, value in buffers.items() if name.rpartition('.')[2] in statistics}


def fingerprint(value: Tensor) -> str:
    """Shape, digest of the bytes, norm and a fixed projection of a tensor, such as ``'32x8:5f2a09c17be4d361:4.1:-0.2'``."""
    shape, digest = 'x'.join(map(str, value.shape)), _digest(value)
    return ':'.join((shape, digest, *(f'{number:.9e}' for number in _numbers(value))))


def matches(value: Tensor, noted: str) -> bool:
    """Whether a tensor is the one that was noted.

    Equal bytes are. So are numbers that differ by rounding alone: a position embedding that was interpolated on another
    processor differs by 1e-7 of its norm, and weights that were trained further by more than :data:`ROUNDING`.
    """
    shape, digest, *numbers = noted.split(':')
    if shape != 'x'.join(map(str, value.shape)):
        return False
    if digest == _digest(value):
        return True
    (norm, projection), given = map(float, numbers), _numbers(value)
    return abs(given[0] - norm) <= ROUNDING * norm and abs(given[1] - projection) <= ROUNDING * norm


def _digest(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=8).hexdigest()


def _numbers(value: Tensor) -> tuple[float, float]:
    """Norm, and dot product with a fixed sequence that no two weights share an element of."""
    flat = value.detach().cpu().flatten().float()
    rows = F.pad(flat, (0, -flat.numel() % ROW)).view(-1, ROW)  # products of rows first: fast, and little is rounded
    norm = rows.norm(dim=1).double().norm()
    return float(norm), float((rows @ _sequence(ROW).float()).double() @ _sequence(len(rows) + 1)[1:])


def _sequence(length: int) -> Tensor:
    """Numbers from -0.5 to 0.5 that never repeat."""
    return (torch.arange(length, dtype=torch.float64) * GOLDEN_RATIO) % 1 - 0.5


def describe_base(model: nn.Module, names: Iterable[str], load_from: str | None) -> dict[str, Any]:
    """What a checkpoint notes of the weights that it does not hold.

    Args:
        model: The model before it is adapted.
        names: The parameters that can be loaded again.
        load_from: The checkpoint that was loaded over ``init_cfg``'s, if any.

    Returns:
        ``init_cfg`` (as :func:`pretrained_sources`), ``load_from`` and ``fingerprints`` by parameter, and by running
        statistic of a norm.
    """
    weights, found = named_weights(model), set(names)
    parents = {name.rpartition('.')[0] for name in found}
    found |= {name for name in weights if '.running_' in name and name.rpartition('.')[0] in parents}
    return dict(
        init_cfg=pretrained_sources(model),
        load_from=load_from,
        fingerprints={name: fingerprint(weights[name]) for name in sorted(found)},
    )


def without_trained(base: dict[str, Any], trained: Iterable[str]) -> dict[str, Any]:
    """The description without the parameters that are trained, and the statistics beside them."""
    trained = set(trained)
    parents = {name.rpartition('.')[0] for name in trained}
    kept = {
        name: noted
        for name, noted in base['fingerprints'].items()
        if name not in trained and not ('.running_' in name and name.rpartition('.')[0] in parents)
    }
    return dict(base, fingerprints=kept)


def differing(weights: dict[str, Tensor], base: dict[str, Any]) -> Iterator[str]:
    """Weights (:func:`named_weights`) that are not those of the description.

    A position embedding of another length passes: another size of images asks for it.
    """
    for name, noted in base['fingerprints'].items():
        if name not in weights:
            yield f'{name}: absent'
            continue
        shape = 'x'.join(map(str, weights[name].shape))
        if name.endswith('pos_embed') and noted.split(':')[0] != shape:
            continue
        if not matches(weights[name], noted):
            yield f'{name}: {shape}:{_digest(weights[name])}, in training {":".join(noted.split(":")[:2])}'


def restore_base(
    model: nn.Module, base: dict[str, Any], brought: Iterable[str] = (), source: str = 'The checkpoint'
) -> None:
    """Bring a plain model's weights to those that adapters were trained on.

    They are left alone if they are known to be the same already. Otherwise ``init_cfg`` is carried out, the model's own
    where it has one and the noted one elsewhere, and then the noted ``load_from``, unless the model itself has an
    ``init_cfg`` that training had not.

    Args:
        model: A segmentor without adapters.
        base: As :func:`describe_base` returned.
        brought: Names of weights that will come otherwise; only asked for where no fingerprints tell the base.
        source: The adapters' file, for messages.

    Raises:
        OSError: If a noted file is not there, with what to set.
        ValueError: If no base is named anywhere, or the weights that were found are not the same, with what differs.
    """
    if base['fingerprints'] and next(differing(named_weights(model), base), None) is None:
        return
    own, noted = pretrained_sources(model), base['init_cfg']
    if not (own or noted or base['load_from']):
        raise ValueError(
            f'{source} does not record the base that its adapters were trained on, and the model names none: set '
            f"model.init_cfg=dict(type='Pretrained', checkpoint='<the base>'), or load it and then use load_adapter."
        )
    whole = '' in own and own[''] != noted.get('')  # the base in one file that training did not name
    if base['load_from'] and base['fingerprints'] and not whole and _is_all_of_it(model, base):
        return
    if not whole:
        _fill_sources(model, own, noted)
    sources = pretrained_sources(model)
    with watch_loading(model) as loaded:
        try:
            cast(BaseModule, model).init_weights()
        except FileNotFoundError as error:
            raise FileNotFoundError(f'{error} {_CURE}') from error
        if base['load_from'] and not whole:
            load_base(model, base['load_from'])
    wrong = list(differing(named_weights(model), base))
    told = [f'init_cfg of {name or "the model"}: {part["checkpoint"]}' for name, part in sources.items()]
    if base['load_from'] and not whole:
        told.append(f'load_from: {base["load_from"]}')
    if wrong:
        raise ValueError(
            f'The adapters of {source} were trained on another base: {len(wrong)} of {len(base["fingerprints"])} weights '
            f'differ ({"; ".join(wrong[:2])}). Found were {", ".join(told) or "no files"}; in training it was '
            f'{_told(base)}. Set init_cfg as in training.'
        )
    covered = loaded | set(brought)
    absent = [name for name, _ in model.named_parameters() if name not in covered] if not base['fingerprints'] else []
    if absent:
        raise ValueError(
            f'{source} does not record the base of its adapters, and {len(absent)} weights, such as {absent[0]}, are '
            f"neither in it nor in {', '.join(told)}: set model.init_cfg=dict(type='Pretrained', checkpoint='<the base>')."
        )


def _is_all_of_it(model: nn.Module, base: dict[str, Any]) -> bool:
    """Whether the noted ``load_from`` alone brings the base, so that ``init_cfg``'s download is not needed."""
    try:
        load_base(model, base['load_from'])
    except OSError:  # told later, with what else was looked for
        return False
    return next(differing(named_weights(model), base), None) is None


_CURE = (
    "It is the base that the adapters were trained on. Where it has moved, set model.init_cfg=dict(type='Pretrained', "
    "checkpoint='<its new path>') for a file of the whole model, or model.vit.pretrained for a ViT's."
)


def _fill_sources(model: nn.Module, own: dict[str, dict], noted: dict[str, dict]) -> None:
    """Give modules without a checkpoint in ``init_cfg`` the noted one; ``init_model`` takes the backbone's away.

    A file that has moved for one module has moved for the others.
    """
    moved = {noted[name]['checkpoint']: part['checkpoint'] for name, part in own.items() if name in noted}
    modules = dict(model.named_modules())
    for name, part in noted.items():
        if name not in own and hasattr(modules.get(name), 'init_cfg'):
            modules[name].init_cfg = dict(part, checkpoint=moved.get(part['checkpoint'], part['checkpoint']))


def load_base(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint's base weights into a plain model; its adapters are ignored.

    Raises:
        OSError: If it is not there.
    """
    try:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{checkpoint} is not there. {_CURE}') from error
    check_noted(noted_arch(loaded), arch_of(model), checkpoint)
    weights = {name.removeprefix('module.'): v for name, v in loaded.get('state_dict', loaded).items()}
    weights = {plain_name(name): value for name, value in weights.items() if not is_adapter(name)}
    runner_checkpoint.load_state_dict(model, Checkpoint(checkpoint, purpose='train').attach(weights), logger='current')
    print_log(f'Base weights: {checkpoint}', logger='current')


def _told(base: dict[str, Any]) -> str:
    files = [part['checkpoint'] for part in base['init_cfg'].values()]
    sources = files + ([base['load_from']] if base['load_from'] else [])
    return ', then '.join(dict.fromkeys(sources)) or 'not loaded from any file'
