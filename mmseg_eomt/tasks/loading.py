"""From a config's ``tasks`` to segmentors: each its own head and adapters, with the names of its own classes."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as runner_checkpoint
from mmseg.apis import init_model
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import nn

from mmseg_eomt.adapters.checkpoint import note_of, weights_of
from mmseg_eomt.inference import class_names, for_prediction, names_and_colours
from mmseg_eomt.models.segmentor import share_vit
from mmseg_eomt.tasks.sharing import Base, base_of
from mmseg_eomt.visualization import make_palette

FIELDS = ('checkpoint', 'config')


def load_tasks(
    config: str | Config, tasks: Sequence[str] | None = None, device: str | None = None, options: dict | None = None
) -> BaseSegmentor:
    """Build a :class:`~.segmentor.MultiTaskSegmentor` from its config, its tasks' checkpoints loaded.

    Args:
        config: Path of the config, ``mmseg_eomt::NAME``, or a config, which is not changed.
        tasks: Names of those to load, the first of which is the default. Default: all.
        device: Such as ``'cuda:1'``. Default: a GPU if there is one.
        options: Settings of the config to change, ``{'a.b': value}``. Default: none.

    Returns:
        The segmentor in evaluation mode, with ``cfg``.

    Raises:
        ValueError: If the config has no tasks or none of a name, or as :class:`~.segmentor.MultiTaskSegmentor`.
    """
    register_all_modules()
    settings = copy.deepcopy(config) if isinstance(config, Config) else Config.fromfile(config)
    settings.merge_from_dict(options or {})
    given = tasks_of(settings)
    if tasks is not None:
        settings.model.tasks = ConfigDict({name: entry_of(given, name) for name in tasks})
    settings.test_pipeline = for_prediction(_first(settings.test_dataloader.dataset)['pipeline'])
    return init_model(settings, device=device or get_device())


def tasks_of(config: Config) -> Mapping[str, Any]:
    """The tasks' entries of a config.

    Raises:
        ValueError: If it has none, or something else is in their place.
    """
    model: Any = config.get('model') or {}
    if not model.get('tasks'):
        raise ValueError(
            f"{config.filename or 'The config'} has no tasks: set model.type='MultiTaskSegmentor' and "
            f"model.tasks=dict(name='<checkpoint>', …), as configs/tasks/eomt_tasks_demo.py does."
        )
    return checked_tasks(model.tasks)


def checked_tasks(tasks: Any) -> Mapping[str, Any]:
    """What is given as tasks, once it is known to be entries by name.

    Raises:
        ValueError: If it is not, or there are none.
    """
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(f"tasks are checkpoints by name, tasks=dict(name='<checkpoint>', …), got {tasks!r}.")
    return tasks


def entry_of(tasks: Any, name: str) -> Any:
    """A task's entry.

    Raises:
        ValueError: If there is none of this name, with those there are.
    """
    if name not in tasks:
        raise ValueError(f'There is no task {name!r}: the tasks are {", ".join(tasks)}.')
    return tasks[name]


def task_names(config: Config, given: Sequence[str]) -> list[str]:
    """The tasks that a command is asked for: names, or ``['all']``.

    Raises:
        ValueError: If the config has no tasks, or none of a name.
    """
    tasks = tasks_of(config)
    if list(given) == ['all']:
        return list(tasks)
    for name in given:
        entry_of(tasks, name)
    return list(dict.fromkeys(given))


def load_task(name: str, entry: str | Mapping[str, Any], shared: Mapping[str, Any]) -> tuple[BaseSegmentor, Base]:
    """Build a task's segmentor and load its checkpoint.

    Args:
        name: Of the task.
        entry: Path or address of its checkpoint or its folder in PEFT's format; or a dict with ``checkpoint`` and the
            ``config`` that it was trained with. Without a config it is the shared model with as many classes as the
            checkpoint names.
        shared: ``model`` of the config with the tasks.

    Returns:
        The segmentor, with ``dataset_meta``, and the encoder's weights that it takes as given.

    Raises:
        ValueError: If the entry is none, classes are unknown, or the checkpoint does not fit.
    """
    path, config = _checked(name, entry)
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    meta = _classes(name, checkpoint, config)
    settings = copy.deepcopy(dict(config.model if config else shared))
    settings['test_cfg'] = shared.get('test_cfg')
    if not config:
        settings['decode_head'] = dict(settings['decode_head'], num_classes=len(meta['classes']))
    model = MODELS.build(settings)
    if not hasattr(getattr(model, 'decode_head', None), 'predict'):
        raise ValueError(f'Task {name!r} is a {type(model).__name__}: a task needs a backbone and one decode head.')
    if model.decode_head.num_classes != len(meta['classes']):
        raise ValueError(
            f'Task {name!r} has {model.decode_head.num_classes} classes, but the names of its data are '
            f'{len(meta["classes"])}: {meta["classes"]}.'
        )
    weights = weights_of(checkpoint)
    for key in [key for key in weights if key.startswith('module.')]:  # of a wrapped model
        weights[key.removeprefix('module.')] = weights.pop(key)
    note = note_of(checkpoint, path)
    runner_checkpoint.load_state_dict(model, weights, logger='current')
    model.dataset_meta = meta
    return model.requires_grad_(False).eval(), base_of(model, note)


def _checked(name: str, entry: Any) -> tuple[str, Config | None]:
    """Checkpoint and config of an entry."""
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w-]*', name):
        raise ValueError(f'A task is named with letters, digits, _ and -, as its folder of results is; got {name!r}.')
    if hasattr(nn.ModuleDict(), name):  # which keeps the tasks
        raise ValueError(f'A task cannot be named {name!r}, a word of PyTorch itself: add to it, as in {name + "_task"!r}.')
    given = dict(checkpoint=entry) if isinstance(entry, str) else entry
    valid = isinstance(given, Mapping) and isinstance(given.get('checkpoint'), str) and given.keys() <= set(FIELDS)
    if not valid:
        raise ValueError(
            f"Task {name!r} is a checkpoint's path or dict(checkpoint='<path>', config='<config>'), got {entry!r}."
        )
    return given['checkpoint'], _config_of(name, given['config']) if given.get('config') else None


def _config_of(name: str, path: Any) -> Config:
    """The config of a task, which has a model."""
    try:
        config = Config.fromfile(path)
    except (OSError, TypeError) as error:
        raise ValueError(f'The config of task {name!r} cannot be read, give its path: {path!r} ({error})') from error
    if not config.get('model'):
        raise ValueError(f'The config of task {name!r}, {path}, has no model: give the one that the task was trained with.')
    return config


def _classes(name: str, checkpoint: Mapping[str, Any], config: Config | None) -> dict[str, list]:
    """Names and colours of a task's classes: of its config's test data, else of its checkpoint."""
    found = class_names(_first(config.test_dataloader.dataset)) if config and config.get('test_dataloader') else None
    meta = checkpoint.get('meta') if isinstance(checkpoint.get('meta'), Mapping) else {}
    noted = (meta or {}).get('dataset_meta')
    found = found or (names_and_colours(dict(noted)) if isinstance(noted, Mapping) else {})
    if not found.get('classes'):
        raise ValueError(
            f'The checkpoint of task {name!r} does not name its classes: give the task the config that it was trained '
            f"with, dict(checkpoint='…', config='…')."
        )
    if len(found.get('palette', ())) != len(found['classes']):
        found['palette'] = make_palette(len(found['classes']))
    return found


def _first(dataset: Any) -> Any:
    """The first dataset's settings below what concatenates or repeats it."""
    while 'pipeline' not in dataset:
        dataset = dataset['datasets'][0] if 'datasets' in dataset else dataset['dataset']
    return dataset


def shared_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the shared model, with the sizes of windows and images filled in."""
    settings = share_vit(model)
    return dict(settings, type='EoMTSegmentor', test_cfg=settings.get('test_cfg') or dict(mode='whole'))
