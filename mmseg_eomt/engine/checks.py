"""What a run would find out too late: checks of its model, its data and their classes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

from mmseg_eomt.adapters.checkpoint import note_of, weights_of
from mmseg_eomt.adapters.loading import unwrapped
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.segmentor import check_split
from mmseg_eomt.weights.checkpoint import Checkpoint
from mmseg_eomt.weights.fit import fit_checkpoint

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


def segmentor_of(runner: Runner) -> nn.Module:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    return unwrapped(runner.model)


def is_training(runner: Runner) -> bool:
    """Whether ``Runner.train`` called the hook: only it builds the optimizer."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def prepare_run(runner: Runner) -> None:
    """Check the model and, in training, its data; a second call changes nothing."""
    check_split(segmentor_of(runner))
    check_outputs(segmentor_of(runner))
    if is_training(runner):
        check_classes(runner)


def check_outputs(model: nn.Module) -> None:
    """Make sure that no other part takes the output of an :class:`EoMTViT` that is made for an :class:`EoMTHead`.

    Raises:
        ValueError: If a neck or one of the toolbox's heads would, with what to set.
    """
    vit = getattr(model, 'backbone', None)
    if not isinstance(vit, EoMTViT) or not vit.num_joint_blocks or len(vit.blocks) - 1 not in vit.out_indices:
        return
    last = len(vit.out_indices) - 1
    takers = ['neck'] if getattr(model, 'neck', None) is not None else []
    for name, head in model.named_modules():
        indices = getattr(head, 'in_index', None) if isinstance(head, BaseDecodeHead) else None
        if indices is not None and any(i in (last, -1) for i in ([indices] if isinstance(indices, int) else indices)):
            takers.append(name)
    if takers:
        raise ValueError(
            f"{takers[0]} takes the backbone's last output, which with num_joint_blocks={vit.num_joint_blocks} holds prefix "
            f'tokens beside the map, for EoMTHead: add an earlier block to out_indices of the backbone and its place to '
            f'in_index of {takers[0]}, or set num_joint_blocks=0 where there is no EoMTHead.'
        )


def fit_run_checkpoint(runner: Runner, checkpoint: dict) -> None:
    """Say what a Runner loads a checkpoint for, and fit its weights to the model, in place.

    It comes before the hooks, of which EMAHook copies the weights. Adapters are put in by LoRAHook, or refused by the
    loader of the weights.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names, or if a resumed run has another
            grid of positions.
    """
    weights, model = weights_of(checkpoint), segmentor_of(runner)
    purpose = ('resume' if runner._resume else 'train') if is_training(runner) else 'predict'
    origin = replace(Checkpoint.of(weights), purpose=purpose)
    weights = origin.attach(weights)
    if note_of(checkpoint) is None and not tuner_layers(model):
        fitted = fit_checkpoint(model, weights)
        if fitted is not weights and origin.purpose == 'resume':
            raise ValueError(
                f'{origin.source} is of a model with another img_size than the run to resume: set it as it was, or start a '
                f'new run from it without --resume.'
            )
        weights = fitted
    if 'state_dict' in checkpoint:
        checkpoint['state_dict'] = weights
    else:
        checkpoint._metadata = weights._metadata
