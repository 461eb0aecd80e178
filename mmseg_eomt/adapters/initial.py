"""Starts that take their directions out of the base: minor components, and what PEFT's data-driven methods find.

Adapters start at A₀ and B₀, and the base at W - s·B₀·A₀, so that the model is where it was. The layer keeps A₀ and B₀ beside
its adapters: a checkpoint holds these and no weight of the base, which is W as it was found less the same product.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from mmengine.dist import broadcast, is_main_process
from torch import Tensor, nn
from tqdm import tqdm

from mmseg_eomt.adapters.config import as_values
from mmseg_eomt.adapters.names import START_A, START_B, configs_of, tuner_layers
from mmseg_eomt.adapters.starts import keeps_start, start_of

if TYPE_CHECKING:
    from peft import PeftConfig

# Where a layer has what was found in data for its start (see engine/data_starts.py); the last two names are PEFT's.
FOUND = dict(eva='eva_components', corda='eigens', lora_ga='_peft_loraga_grad')


@contextmanager
def starting(model: nn.Module, config: Any, fresh: bool = True) -> Iterator[Any]:
    """Start adapters where PEFT alone would not: it puts them in while the context is open.

    Args:
        model: A plain model, its weights in.
        config: PEFT's config, of any method and start, fitted to the model.
        fresh: Whether the adapters start. If not, a checkpoint brings their values and their start. Default: True.

    Yields:
        The config that PEFT is to be given.

    Raises:
        ValueError: If a layer cannot start in this way.
    """
    start = start_of(as_values(config))
    if start not in ('minor', *FOUND):
        yield config
        return
    given = copy.copy(config)
    bases = {name: module.weight.data for name, module in model.named_modules() if hasattr(module, FOUND.get(start, ' '))}
    if not fresh or start in ('minor', 'eva') or not bases:
        given.init_lora_weights = True
    yield given
    config_in_model: Any = configs_of(model)['default']
    config_in_model.init_lora_weights = start
    layers = tuner_layers(model)
    for name in tqdm(layers, 'minor directions', disable=not (fresh and start == 'minor' and is_main_process())):
        layer = layers[name]
        if fresh:
            _begin(name, layer, start, bases.get(name))
        if start != 'eva':
            _keep(name, layer, fresh)


def check_layer(name: str, layer: nn.Module, start: str) -> None:
    """Make sure that a layer can start in this way.

    Raises:
        ValueError: If it is not linear, or its weights are not float32.
    """
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f'init_lora_weights={start!r} starts linear layers, and {name} is a {type(layer).__name__}: exclude it.'
        )
    if layer.weight.dtype != torch.float32:
        raise ValueError(
            f'init_lora_weights={start!r} takes directions out of weights of float32, and those of {name} are '
            f"{layer.weight.dtype}, which would round them away: set base_precision='fp32'."
        )


@torch.no_grad()
def _begin(name: str, layer: Any, start: str, weight: Tensor | None) -> None:
    """Bring the adapters of a layer to their start, and its base to what it was."""
    base = layer.get_base_layer()
    check_layer(name, base, start)
    if start == 'minor':
        _minor(name, layer)
        return
    if weight is None:
        raise ValueError(
            f'init_lora_weights={start!r} starts from images, and none have come through {name}: it needs a training run '
            f'with LoRAHook, in which the model calls this layer.'
        )
    base.weight.data = weight
    if start == 'eva':
        layer.lora_A['default'].weight.copy_(base.__dict__.pop(FOUND[start]))


def blocks_of(layer: Any, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a LoRA layer's A (r, in), B (out, r) and weight (out, in), one for each part that is adapted apart."""
    count = getattr(layer.lora_B['default'], 'num_blocks', 1)  # of split_qkv.py
    return zip(*(tensor.chunk(count) for tensor in tensors), strict=True)


def _minor(name: str, layer: Any) -> None:
    """SoMA's start (``rein/peft/sora.py`` of ysj9909/SoMA): the directions of the smallest singular values.

    The decomposition is on the CPU, whose result does not depend on the device of the run.
    """
    tensors = (layer.lora_A['default'].weight, layer.lora_B['default'].weight, layer.get_base_layer().weight)
    for a, b, weight in blocks_of(layer, *tensors):
        rank = len(a)
        if rank > min(weight.shape):
            raise ValueError(
                f'{name} has {min(weight.shape)} singular directions, from which {rank} cannot be taken: lower the rank r, '
                f'or exclude the layer.'
            )
        u, values, v = torch.linalg.svd(weight.detach().cpu(), full_matrices=False)
        roots = (values[-rank:] / layer.scaling['default']).sqrt()
        a.copy_(roots[:, None] * v[-rank:])
        b.copy_(u[:, -rank:] * roots)


@torch.no_grad()
def _keep(name: str, layer: Any, fresh: bool) -> None:
    """Note the start beside the adapters, and take it out of the base; all processes have the first one's."""
    if not layer.get_base_layer().weight.is_floating_point():
        raise ValueError(
            f'The adapters of {name} start with directions taken out of its weights, which are of 8 or 4 bits here: set '
            f"base_precision='fp32' or 'bf16'."
        )
    a, b = layer.lora_A['default'].weight, layer.lora_B['default'].weight
    if fresh:
        broadcast(a.data)
        broadcast(b.data)
    layer.register_buffer(START_A, a.detach().clone() if fresh else torch.zeros_like(a))
    layer.register_buffer(START_B, b.detach().clone() if fresh else torch.zeros_like(b))
    if fresh:
        base = layer.get_base_layer()
        base.weight.data = _without(layer, base.weight, a, b)


def _without(layer: Any, weight: Tensor, start_a: Tensor, start_b: Tensor) -> Tensor:
    """W - s·B₀·A₀ in double precision on the CPU: rounded to float32 it is the same wherever it is computed again."""
    parts = (tensor.detach().cpu().double() for tensor in (start_a, start_b, weight))
    rows = [w - layer.scaling['default'] * (b @ a) for a, b, w in blocks_of(layer, *parts)]
    return torch.cat(rows).to(weight)


def _starts(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, layer) for name, layer in tuner_layers(model).items() if hasattr(layer, START_A))


def base_from_starts(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """The base weights that go with the starts in a checkpoint, where it does not hold them itself.

    Args:
        model: An adapted model, its base as it was found.
        state_dict: The checkpoint's, with all adapters in it.
        prefix: Of its names.
        source: The file, for messages.

    Raises:
        RuntimeError: If the model's adapters have another start, which has changed its base already.
    """
    found = {}
    for name, layer in _starts(model):
        names = [f'{prefix}{name}.{part}' for part in (START_A, START_B)]
        base = f'{prefix}{name}.base_layer.weight'
        if base in state_dict or not state_dict.keys() >= set(names):
            continue
        given = [state_dict[part] for part in names]
        own = [getattr(layer, part) for part in (START_A, START_B)]
        if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(own, given, strict=True)):
            continue
        if any(part.any() for part in own):
            raise RuntimeError(
                f'{source} has adapters with another start than those of the model, which have changed its base: load it '
                f'into a model without adapters.'
            )
        found[base] = _without(layer, layer.get_base_layer().weight, *given)
    return found


def exported_config(config: 'PeftConfig') -> Any:
    """The config of the ordinary LoRA of twice the rank that a start is exported as.

    Raises:
        ValueError: If ranks or scales differ between layers and rsLoRA scales by their roots.
    """
    new: Any = copy.copy(config)
    if not keeps_start(as_values(config)):
        return new
    patterns = new.rank_pattern or new.alpha_pattern
    if new.use_rslora and patterns:
        raise ValueError(
            f'rsLoRA with rank_pattern or alpha_pattern, got {patterns}, has no place in the ordinary LoRA that '
            f'init_lora_weights={new.init_lora_weights!r} is exported as: drop one of the two, or keep the checkpoint.'
        )
    new.lora_alpha = 2 * new.r**0.5 * new.lora_alpha if new.use_rslora else 2 * new.lora_alpha
    new.r, new.use_rslora, new.init_lora_weights = 2 * new.r, False, True
    new.corda_config = new.lora_ga_config = None
    new.rank_pattern = {name: 2 * rank for name, rank in (new.rank_pattern or {}).items()}
    new.alpha_pattern = {name: 2 * alpha for name, alpha in (new.alpha_pattern or {}).items()}
    return new


def exported_weights(model: nn.Module, weights: Mapping[str, Tensor], name: str = 'default') -> dict[str, Tensor]:
    """Adapters that change the base as it was found: A and A₀ below each other, B and -B₀ side by side.

    Args:
        model: An adapted model.
        weights: Its weights, or others of the same names.
        name: Of the adapter.

    Returns:
        All of the weights.
    """
    new = dict(weights)
    for layer_name, layer in _starts(model):
        keys = [f'{layer_name}.lora_{part}.{name}.weight' for part in 'AB']
        parts = [*(weights[key] for key in keys), *(weights[f'{layer_name}.{part}'] for part in (START_A, START_B))]
        pairs = [(torch.cat([a, a0]), torch.cat([b, -b0], 1)) for a, b, a0, b0 in blocks_of(layer, *parts)]
        new.update(zip(keys, map(torch.cat, zip(*pairs, strict=True)), strict=True))
    return new
