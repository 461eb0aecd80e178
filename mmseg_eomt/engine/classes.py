"""Whether a run's data has the classes that its model predicts, under the same numbers."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.runner import Runner

from mmseg_eomt.adapters.loading import unwrapped
from mmseg_eomt.models.eomt_head import EoMTHead

NAMES = dict(train='training', val='validation', test='test')
NUM_SHOWN = 3


def check_classes(runner: Runner) -> None:
    """Compare the head's classes with those of the data, and the names of validation and test data with training's.

    Only data whose loader is built is looked at: training builds those of training and validation.

    Raises:
        ValueError: If their numbers differ, or names or their order do; the message says what to set.
    """
    trained = next(_classes_of(runner, 'train'), None)
    for split in NAMES:
        for classes in _classes_of(runner, split):
            _check_number(runner, split, classes)
            if trained and split != 'train':
                _check_names(runner, split, classes, trained, 'the training data')


def check_trained_classes(runner: Runner, checkpoint: dict[str, Any], resumes: bool) -> None:
    """Compare the names that a checkpoint notes with those of the data that it is to be evaluated on, or resumed with.

    Raises:
        ValueError: If names or their order differ.
    """
    noted = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    trained = class_names(noted) if isinstance(noted, dict) else None
    for split in ('train',) if resumes else ('val', 'test'):
        for classes in _classes_of(runner, split) if trained else ():
            _check_names(runner, split, classes, trained, runner._load_from or 'the checkpoint')


def class_names(meta: dict[str, Any]) -> list[str] | None:
    """The names in a dataset's ``metainfo``, in a list, tuple or array; None if there are none."""
    classes = meta.get('classes')
    return [str(name) for name in classes] or None if isinstance(classes, (list, tuple, np.ndarray)) else None


def _classes_of(runner: Runner, split: str) -> Iterator[list[str]]:
    """The names of each dataset of a loader that is built, and of what wraps it."""
    loader = getattr(getattr(runner, f'_{split}_loop', None), 'dataloader', None)
    datasets = [loader.dataset] if loader is not None else []
    while datasets:
        dataset = datasets.pop(0)
        datasets.extend([*getattr(dataset, 'datasets', ()), *([dataset.dataset] if hasattr(dataset, 'dataset') else [])])
        meta = getattr(dataset, '_metainfo', None) or getattr(dataset, 'metainfo', {})
        names = class_names(meta)
        if names:
            if not isinstance(meta['classes'], (list, tuple)):  # an array of names could be saved, and not read again
                meta['classes'] = names
            yield names


def _check_number(runner: Runner, split: str, classes: Sequence[str]) -> None:
    for head in unwrapped(runner.model).modules():
        if isinstance(head, EoMTHead) and len(classes) != head.num_classes:
            cure = f'model.decode_head.num_classes={len(classes)}'
            if split != 'train':
                cure = f"the classes of {split}_dataloader.dataset to the model's"
            raise ValueError(
                f'The {NAMES[split]} data has {len(classes)} classes, but num_classes of decode_head is {head.num_classes}: '
                f'set {cure}.'
            )


def _check_names(runner: Runner, split: str, classes: list[str], trained: list[str], source: str) -> None:
    differing = [i for i, pair in enumerate(zip(classes, trained)) if _alike(pair[0]) != _alike(pair[1])]
    told = [f'class {i} is {classes[i]!r} and not {trained[i]!r}' for i in differing[:NUM_SHOWN]]
    told += [f'and so on ({len(differing)} in all)'] if len(differing) > NUM_SHOWN else []
    if len(classes) != len(trained):
        told = [f'there are {len(classes)} and not {len(trained)}']
    if told and runner.cfg.get('check_class_names', True):
        raise ValueError(
            f"The {NAMES[split]} data's classes are not those of {source}: {', '.join(told)}. Give "
            f'{split}_dataloader.dataset the same classes in the same order; if they only are called differently, '
            f'set check_class_names=False.'
        )


def _alike(name: str) -> str:
    """A name without what datasets write in different ways: ``Traffic-Light``, ``traffic light``."""
    return re.sub(r'[\s_-]', '', name).lower()
