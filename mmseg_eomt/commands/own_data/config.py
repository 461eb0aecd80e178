"""The config for a user's data, on top of one of the plugin's."""

import os
import pprint
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmseg_eomt.commands.own_data.class_mapping import ClassMapping
from mmseg_eomt.configs import PREFIX, config_folder

DEFAULT_BASE = 'eomt_lora_dinov2-b_cityscapes_640.py'
SCHEDULE, ITERS = 'TwoWarmupsPolyLR', 8000


def base_config(base: str, iters: int | None = None) -> Path:
    """Path of a config that is given as a path, or by its name among the plugin's.

    Raises:
        ValueError: If there is none, its data cannot be replaced, or ``iters`` is below 1, or given where its schedule is
            not the published one.
    """
    if iters is not None and iters < 1:
        raise ValueError(f'--iters is the number of iterations to train, 1 or more, got {iters}.')
    path = next((path for path in (Path(base), config_folder() / base.removeprefix(PREFIX)) if path.is_file()), None)
    if path is None:
        raise ValueError(f'--base {base} is neither a file nor a config in {config_folder()}.')
    config = Config.fromfile(path)
    for loader in ('train_dataloader', 'val_dataloader'):
        steps = config[loader].dataset.get('pipeline')
        if steps is None or any(step['type'] == 'LoadAnnotations' and step.get('reduce_zero_label') for step in steps):
            kind = 'from several datasets' if steps is None else 'with reduce_zero_label=True'
            raise ValueError(
                f'--base {base} reads its data {kind}, and yours cannot take their place: give a config on Cityscapes, such '
                f'as {DEFAULT_BASE}.'
            )
    if iters and _schedules(config) != [SCHEDULE]:
        raise ValueError(f'--iters goes with the schedule {SCHEDULE}, and {path.name} has {_schedules(config)}.')
    return path.resolve()


def config_text(
    config_file: Path,
    base: Path,
    mapping: ClassMapping,
    dataset: dict[str, Any],
    lists: dict[str, Path],
    iters: int | None = None,
) -> str:
    """A config's text.

    Args:
        config_file: Where it will be.
        base: The config that it inherits, of :func:`base_config`.
        mapping: The classes.
        dataset: ``data_prefix``, ``img_suffix`` and ``seg_map_suffix`` of the dataset.
        lists: Files that name the images, for ``'train'`` and ``'val'``.
        iters: Iterations to train. Default: 8000 with the published schedule, else the base's.
    """
    classes, palette = (
        pprint.pformat(value, width=115, compact=True).replace('\n', '\n   ') for value in (mapping.classes, mapping.palette)
    )
    prefixes = ', '.join(f'{name}={folder!r}' for name, folder in dataset['data_prefix'].items())
    return f"""_base_ = {_base_name(config_file, base)!r}
classes = {classes}
palette = {palette}
dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    metainfo=dict(classes=classes, palette=palette),
    data_prefix=dict({prefixes}),
    img_suffix={dataset['img_suffix']!r},
    seg_map_suffix={dataset['seg_map_suffix']!r},
)
train = dict(ann_file={lists['train'].as_posix()!r}, pipeline=_base_.train_dataloader.dataset.pipeline)
val = dict(ann_file={lists['val'].as_posix()!r}, pipeline=_base_.val_dataloader.dataset.pipeline)
train_dataloader = dict(dataset=dict(**dataset, **train))
val_dataloader = dict(dataset=dict(**dataset, **val))
test_dataloader = val_dataloader
model = dict(decode_head=dict(num_classes=len(classes)))
{_schedule(base, iters)}"""


def _base_name(config_file: Path, base: Path) -> str:
    """The base by its path, or as ``mmseg_eomt::…`` for a config that is elsewhere than the plugin's."""
    if config_folder() in base.parents and config_folder() not in config_file.resolve().parents:
        return PREFIX + base.relative_to(config_folder()).as_posix()
    return Path(os.path.relpath(base, config_file.resolve().parent)).as_posix()


def _schedules(config: Config) -> list[str]:
    return [schedule['type'] for schedule in config.get('param_scheduler') or []]


def _schedule(base: Path, iters: int | None) -> str:
    """Lines for a run of some iterations: warm-ups of a twentieth and a tenth of its steps, ten evaluations."""
    config = Config.fromfile(base)
    if _schedules(config) != [SCHEDULE]:
        return ''
    iters = iters or ITERS
    steps, every = iters // config.optim_wrapper.get('accumulative_counts', 1), max(1, iters // 10)
    warmups = f'({steps // 20}, {steps // 10})'
    return (
        f"param_scheduler = [dict(type='{SCHEDULE}', warmup_steps={warmups}, power=0.9, by_epoch=False)]\n"
        f'train_cfg = dict(max_iters={iters}, val_interval={every})\n'
        f'default_hooks = dict(checkpoint=dict(interval={every}))\n'
    )
