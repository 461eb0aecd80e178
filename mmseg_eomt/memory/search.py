"""The fastest settings of a config that fit a GPU."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmengine.config import Config
from mmseg.registry import MODELS

from mmseg_eomt.memory.iterations import scaled
from mmseg_eomt.memory.predict import predict
from mmseg_eomt.models.query_head import QueryHead

# what settings cost, in forward passes of fp32: an order to look in, not a measurement
BACKWARD = 2.0  # of a forward pass
RECOMPUTED = {'nothing': 0.0, 'masks': 0.3, 'all': 1.0}  # by activation checkpointing: of a forward pass
BF16_TIME = 0.5
OVERHEAD = 0.25  # images' worth of an iteration that do not depend on its batch
BASE_TIME = {'fp32': 1.0, 'bf16': 1.0, '8bit': 1.2, '4bit': 1.3}
# of a GPU's memory, what tensors cannot have: CUDA and its libraries, and gaps of the allocator
CONTEXT_BYTES = 0.6e9
GAPS = 0.05
# of a peak that a line through those of smaller batches gives: what is above the limit even so is not looked at
NEARLY = 0.95


@dataclass(frozen=True)
class Setting:
    """One way to run a config at its effective batch size.

    Args:
        batch: Images per GPU and iteration.
        accumulation: Iterations per step of the optimizer.
        recomputed: By activation checkpointing: ``'nothing'``, ``'masks'`` (the predictions alone) or ``'all'``.
        precision: ``'fp32'`` or ``'bf16'`` (autocast).
        base: ``base_precision`` of the LoRAHook; None without one.
    """

    batch: int
    accumulation: int
    recomputed: str
    precision: str
    base: str | None

    @property
    def cost(self) -> float:
        """Time per image in forward passes of fp32, by the constants above."""
        passes = 1 + BACKWARD + RECOMPUTED[self.recomputed]
        passes *= BF16_TIME if self.precision == 'bf16' else 1.0
        return passes * BASE_TIME[self.base or 'fp32'] * (1 + OVERHEAD / self.batch)


@dataclass(frozen=True)
class Fit:
    """A setting, its predicted peak in bytes, and the ``--cfg-options`` that make it."""

    setting: Setting
    peak: int
    options: dict[str, Any]


def changed(config: Config, options: Mapping[str, Any]) -> Config:
    """A copy of a config with ``--cfg-options``."""
    config = copy.deepcopy(config)
    config.merge_from_dict(dict(options))
    return config


def usable(gpu_bytes: float) -> float:
    """What of a GPU's memory is left for tensors."""
    return gpu_bytes * (1 - GAPS) - CONTEXT_BYTES


def fastest(
    config: Config, gpu_bytes: float, gpus: int = 1, precisions: Sequence[str] = ('bf16', 'fp32'), **assumed: Any
) -> Fit:
    """The setting of the lowest cost whose predicted peak fits.

    Args:
        config: As ``tools/train.py`` takes it.
        gpu_bytes: Memory of a GPU.
        gpus: GPUs that share an effective batch. Default: 1.
        precisions: Which may be taken. Default: both.
        assumed: ``classes_in_image`` and ``image`` of :func:`~.predict.predict`.

    Raises:
        ValueError: If none fits, with the least that is needed.
    """
    limit, least = usable(gpu_bytes), float('inf')
    lines: dict[tuple, list[int]] = {}  # peaks at batches of 1 and 2, of settings that differ in the batch alone
    for setting in sorted(settings(config, gpus, precisions), key=lambda setting: setting.cost):
        kind = setting.recomputed, setting.precision, setting.base
        if kind not in lines:
            lines[kind] = [
                predict(
                    changed(config, options_for(config, replace(setting, batch=size), gpus)), evaluate=False, **assumed
                ).peak
                for size in (1, 2)
            ]
        first, second = lines[kind]
        least = min(least, first)
        if NEARLY * (first + (setting.batch - 1) * (second - first)) > limit:
            continue
        options = options_for(config, setting, gpus)
        peak = predict(changed(config, options), **assumed).peak
        if peak <= limit:
            return Fit(setting, peak, options)
    needed = (least + CONTEXT_BYTES) / (1 - GAPS)
    raise ValueError(
        f'No setting fits {gpu_bytes / 1e9:.1f} GB: the smallest that was looked at needs {needed / 1e9:.1f} GB. Take a '
        f'smaller ViT or crop, a LoRA config, or sharding.'
    )


def settings(config: Config, gpus: int = 1, precisions: Sequence[str] = ('bf16', 'fp32')) -> Iterator[Setting]:
    """Every setting that keeps the images per step of the optimizer.

    Raises:
        ValueError: If the GPUs do not divide the images of a step.
    """
    images = effective_batch(config)
    if images % gpus:
        raise ValueError(f'{gpus} GPUs do not divide the {images} images of an optimizer step.')
    per_gpu = images // gpus
    batches = [batch for batch in range(1, per_gpu + 1) if per_gpu % batch == 0]
    bases = (None,) if lora_hook_index(config) is None else ('fp32', 'bf16')
    levels = ['nothing', *(level for level in ('masks', 'all') if level in checkpointing(config))]
    for batch, recomputed, precision, base in itertools.product(batches, levels, precisions, bases):
        yield Setting(batch, per_gpu // batch, recomputed, precision, base)


def effective_batch(config: Config) -> int:
    """Images per step of the optimizer, as the config has them on one GPU."""
    return config.train_dataloader.batch_size * config.optim_wrapper.get('accumulative_counts', 1)


def lora_hook_index(config: Config) -> int | None:
    """The place of the LoRAHook among the custom hooks."""
    hooks = config.get('custom_hooks') or ()
    return next((place for place, hook in enumerate(hooks) if hook.get('type') == 'LoRAHook'), None)


def checkpointing(config: Config) -> dict[str, str]:
    """The setting that recomputes ``'masks'`` or ``'all'``; nothing where backbone or head are not known to have it."""
    found = {}
    head = MODELS.get(str(config.model.get('decode_head', {}).get('type')))
    if isinstance(head, type) and issubclass(head, QueryHead):
        found['masks'] = 'model.decode_head.masks_with_cp'
    if config.model.get('vit') is not None:
        found['all'] = 'model.vit.with_cp'
    elif 'with_cp' in config.model.get('backbone', {}):
        found['all'] = 'model.backbone.with_cp'
    return found


def options_for(config: Config, setting: Setting, gpus: int = 1) -> dict[str, Any]:
    """The ``--cfg-options`` of a setting: what it changes, and iterations that count the same steps of the optimizer."""
    old = config.train_dataloader.batch_size, config.optim_wrapper.get('accumulative_counts', 1)
    options: dict[str, Any] = {}
    if (setting.batch, setting.accumulation) != old:
        options['train_dataloader.batch_size'] = setting.batch
        options['optim_wrapper.accumulative_counts'] = setting.accumulation
        options.update(scaled(config, setting.accumulation / old[1]))
    if (config.get('auto_scale_lr') or {}).get('base_batch_size', setting.batch * gpus) != setting.batch * gpus:
        options['auto_scale_lr.base_batch_size'] = setting.batch * gpus
    for level, name in checkpointing(config).items():
        if level == 'all' or setting.recomputed == level or config.model.decode_head.get('masks_with_cp'):
            options[name] = setting.recomputed == level
    if setting.precision == 'bf16':
        options['optim_wrapper.type'], options['optim_wrapper.dtype'] = 'AmpOptimWrapper', 'bfloat16'
    elif config.optim_wrapper.get('type') == 'AmpOptimWrapper':
        options['optim_wrapper.dtype'] = 'float32'  # its loss_scale and dtype are nothing that an OptimWrapper takes
    place = lora_hook_index(config)
    if place is not None and setting.base != config.custom_hooks[place].get('base_precision', 'fp32'):
        options[f'custom_hooks.{place}.base_precision'] = setting.base
    return options
