"""What every run of an EoMT checks, says and notes, whichever hooks its config has."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

from mmseg_eomt.adapters.base_weights import pretrained_sources
from mmseg_eomt.adapters.checkpoint import note_of, weights_of
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.engine.checkpoints import RandomStateHook, save_between_steps
from mmseg_eomt.engine.lora_hook import LoRAHook
from mmseg_eomt.engine.optimizer_steps import accumulative_counts
from mmseg_eomt.engine.resume import check_fits_run, check_resumable
from mmseg_eomt.engine.runner_state import checkpoint_path, is_resuming, is_training, segmentor_of
from mmseg_eomt.engine.schedules import MaskAnnealingHook
from mmseg_eomt.models.arch import arch_of
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.models.segmentor import check_split
from mmseg_eomt.weights.arch import ARCH_NOTE, check_noted, noted_arch
from mmseg_eomt.weights.checkpoint import Checkpoint, Purpose
from mmseg_eomt.weights.checkpoint_io import check_optimizer, naming
from mmseg_eomt.weights.fit_pmt import fit_model

NAMES = dict(train='training', val='validation', test='test')
NUM_SHOWN = 3


def has_eomt(runner: Runner) -> bool:
    """Whether a part of the Runner's model is EoMT's."""
    return any(isinstance(module, (EoMTViT, QueryHead)) for module in segmentor_of(runner).modules())


def prepare(runner: Runner) -> None:
    """Check the model and its data before the run, and let the checkpoints of an EoMT note what a later run needs."""
    is_eomt = has_eomt(runner)
    if is_eomt or any(isinstance(hook, LoRAHook) for hook in runner.hooks):
        check_split(segmentor_of(runner))
        check_outputs(segmentor_of(runner))
        if is_training(runner):
            check_classes(runner, 'train', 'val')
    if not is_eomt:
        return
    for kind in (ModelNoteHook, *([RandomStateHook] if is_training(runner) else [])):
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())


def begin_training(runner: Runner) -> None:
    """Say what an EoMT of another batch size, from random weights or without annealed masks would find out too late."""
    if not has_eomt(runner):
        return
    model = segmentor_of(runner)
    _compare_batch(runner)
    heads = [module for module in model.modules() if isinstance(module, QueryHead)]
    annealed = any(isinstance(hook, MaskAnnealingHook) for hook in runner.hooks)
    if any(any(head.mask_probs) for head in heads) and not annealed:
        runner.logger.warning(
            'Masked attention stays on for the whole run; evaluation uses none. Add MaskAnnealingHook to custom_hooks.'
        )
    if not (checkpoint_path(runner) or is_resuming(runner) or pretrained_sources(model) or tuner_layers(model)):
        runner.logger.warning('Neither init_cfg nor load_from names a checkpoint: the model starts from random weights.')
    save_between_steps(runner)


def _compare_batch(runner: Runner) -> None:
    """Say the effective batch size, and warn where the config's learning rates are tuned for another number of images."""
    batch = getattr(runner.train_dataloader, 'batch_size', None)
    accumulated = accumulative_counts(runner.optim_wrapper)
    if not batch or not accumulated:  # a batch sampler, or several optimizers
        return
    processes = runner.world_size
    runner.logger.info(
        f'Effective batch size {batch * processes * accumulated} = {batch} per GPU × {processes} GPUs × {accumulated} '
        f'accumulation steps; {runner.max_iters} iterations are {-(-runner.max_iters // accumulated)} optimizer steps.'
    )
    scale = runner.cfg.get('auto_scale_lr') or {}
    base = scale.get('base_batch_size')
    if base and base != batch * processes and not scale.get('enable'):
        fitting = '--auto-scale-lr' if base % processes else f'train_dataloader.batch_size={base // processes}'
        runner.logger.warning(
            f'Learning rates are tuned for {base} images per iteration (auto_scale_lr.base_batch_size), and this run has '
            f'{batch * processes}. Set {fitting}; or accumulative_counts and max_iters such that the effective batch size '
            f'and the optimizer steps are the same, and auto_scale_lr.base_batch_size={batch * processes}: docs/recipe.md.'
        )


def receive(runner: Runner, checkpoint: dict[str, Any], call_hooks: Callable[[], None]) -> None:
    """Check and fit a checkpoint that a Runner has read, before its hooks see it."""
    is_eomt = has_eomt(runner)
    source = Checkpoint.of(weights_of(checkpoint)).source
    with naming(source):
        if is_eomt:
            check_resumable(runner, checkpoint)
        if is_resuming(runner) and 'optimizer' in checkpoint:
            check_optimizer(checkpoint['optimizer'], source)
        fit_run_checkpoint(runner, checkpoint)
        call_hooks()
        if is_eomt:  # after the hooks, which know more of the model
            check_fits_run(runner, checkpoint)


def fit_run_checkpoint(runner: Runner, checkpoint: Any) -> None:
    """Say what a Runner loads a checkpoint for, and fit its weights to the model, in place.

    It comes before the hooks, of which EMAHook copies the weights. Adapters are put in by LoRAHook, or refused by the
    loader of the weights.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names, or if a resumed run has another
            grid of positions.
    """
    read, model = weights_of(checkpoint), segmentor_of(runner)
    purpose: Purpose = 'resume' if is_resuming(runner) else 'train' if is_training(runner) else 'predict'
    origin = replace(Checkpoint.of(read), purpose=purpose)
    weights: Any = origin.attach(read)
    if note_of(checkpoint) is None and not tuner_layers(model):
        fitted = fit_model(model, weights)
        if Checkpoint.of(fitted).is_fitted and origin.purpose == 'resume':
            raise ValueError(
                f'{origin.source} is of a model with another img_size than the run to resume: set it as it was, or start a '
                f'new run from it without --resume.'
            )
        weights = fitted
    if 'state_dict' in checkpoint:
        checkpoint['state_dict'] = weights
        return
    checkpoint.clear()  # a bare state dict, which the Runner holds on to
    checkpoint.update(weights)
    if isinstance(checkpoint, OrderedDict):  # loaders of other addresses may give plain ones
        checkpoint._metadata = weights._metadata  # type: ignore[attr-defined]


class ModelNoteHook(Hook):
    """Note the arch in a checkpoint, and compare that of a loaded one, and the classes of what is evaluated."""

    priority = 'HIGHEST'  # ahead of the data check, which would name each file

    def __init__(self) -> None:
        self._trained: list[str] | None = None  # names of the classes

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note what the weights do not tell, in plain values."""
        arch = arch_of(segmentor_of(runner))
        if arch is not None:
            checkpoint['meta'][ARCH_NOTE] = asdict(arch)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the arch and, in a run that is resumed, the names of the classes.

        Raises:
            ValueError: If they differ.
        """
        source = checkpoint_path(runner) or 'The checkpoint'
        check_noted(noted_arch(checkpoint), arch_of(segmentor_of(runner)), source)
        noted = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self._trained = class_names(noted) if isinstance(noted, dict) else None
        if is_resuming(runner):
            check_trained_classes(runner, 'train', self._trained, source)

    def before_val(self, runner: Runner) -> None:
        """Compare the classes of what is evaluated; training has done so before its first iteration."""
        if not is_training(runner):
            self._check(runner, 'val')

    def before_test(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        self._check(runner, 'test')

    def _check(self, runner: Runner, split: str) -> None:
        if not is_training(runner):
            check_trained_classes(runner, split, self._trained, checkpoint_path(runner) or 'The checkpoint')
        check_classes(runner, split)


def check_classes(runner: Runner, *splits: str) -> None:
    """Compare the head's classes with those of the data, and the names of validation and test data with training's.

    Args:
        runner: Whose loops of these splits are built, as that of training is in a training run.
        splits: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        ValueError: If their numbers differ, or names or their order do; the message says what to set.
    """
    trained = next(_classes_of(runner, 'train'), None) if is_training(runner) else None
    for split in splits:
        for classes in _classes_of(runner, split):
            _check_number(runner, split, classes)
            if trained and split != 'train':
                _check_names(runner, split, classes, trained, 'the training data')


def check_trained_classes(runner: Runner, split: str, trained: list[str] | None, source: str) -> None:
    """Compare the names that a checkpoint notes with those of the data that it is to be evaluated on, or resumed with.

    Raises:
        ValueError: If names or their order differ.
    """
    if trained:
        for classes in _classes_of(runner, split):
            _check_names(runner, split, classes, trained, source)


def class_names(meta: dict[str, Any]) -> list[str] | None:
    """The names in a dataset's ``metainfo``, in a list, tuple or array; None if there are none."""
    classes = meta.get('classes')
    return [str(name) for name in classes] or None if isinstance(classes, (list, tuple, np.ndarray)) else None


def _classes_of(runner: Runner, split: str) -> Iterator[list[str]]:
    """The names of each dataset of a split, and of what wraps it."""
    loop = getattr(runner, f'{split}_loop')
    datasets = [loop.dataloader.dataset] if loop is not None else []
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
    for head in segmentor_of(runner).modules():
        if isinstance(head, QueryHead) and len(classes) != head.num_classes:
            cure = f'model.decode_head.num_classes={len(classes)}'
            if split != 'train':
                cure = f"the classes of {split}_dataloader.dataset to the model's"
            raise ValueError(
                f'The {NAMES[split]} data has {len(classes)} classes, but num_classes of decode_head is {head.num_classes}: '
                f'set {cure}.'
            )


def _check_names(runner: Runner, split: str, classes: list[str], trained: list[str], source: str) -> None:
    differing = [i for i, pair in enumerate(zip(classes, trained)) if _alike(pair[0]) != _alike(pair[1])]
    found = [f'class {i} is {classes[i]!r} and not {trained[i]!r}' for i in differing[:NUM_SHOWN]]
    found += [f'and so on ({len(differing)} in all)'] if len(differing) > NUM_SHOWN else []
    if len(classes) != len(trained):
        found = [f'there are {len(classes)} and not {len(trained)}']
    if found and runner.cfg.get('check_class_names', True):
        raise ValueError(
            f"The {NAMES[split]} data's classes are not those of {source}: {', '.join(found)}. Give "
            f'{split}_dataloader.dataset the same classes in the same order; if they only are called differently, '
            f'set check_class_names=False.'
        )


def _alike(name: str) -> str:
    """A name without what datasets write in different ways: ``Traffic-Light``, ``traffic light``."""
    return re.sub(r'[\s_-]', '', name).lower()


def check_outputs(model: nn.Module) -> None:
    """Make sure that no other part takes an output of an :class:`EoMTViT` that is made for an EoMTHead or PMTHead.

    Raises:
        ValueError: If a neck or one of the toolbox's heads would, with what to set.
    """
    vit = getattr(model, 'backbone', None)
    if not isinstance(vit, EoMTViT) or not vit.outputs_with_tokens:
        return
    last = len(vit.out_indices) - 1
    reserved = {*vit.outputs_with_tokens, *(place - last - 1 for place in vit.outputs_with_tokens)}  # -1 is the last one too
    takers = ['neck'] if getattr(model, 'neck', None) is not None else []
    for name, head in model.named_modules():
        indices = getattr(head, 'in_index', None) if isinstance(head, BaseDecodeHead) else None
        if indices is not None and any(i in reserved for i in ([indices] if isinstance(indices, int) else indices)):
            takers.append(name)
    if takers and not vit.num_joint_blocks:
        raise ValueError(
            f'{takers[0]} takes outputs of {type(vit).__name__}, which hold prefix tokens beside the map, for PMTHead: set '
            f"backbone.type='EoMTViT' with num_joint_blocks=0 where there is no PMTHead."
        )
    if takers:
        raise ValueError(
            f"{takers[0]} takes the backbone's last output, which with num_joint_blocks={vit.num_joint_blocks} holds prefix "
            f'tokens beside the map, for EoMTHead: add an earlier block to out_indices of the backbone and its place to '
            f'in_index of {takers[0]}, or set num_joint_blocks=0 where there is no EoMTHead.'
        )
