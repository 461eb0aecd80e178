"""What a run would find out too late: checks that both hooks make."""

from pathlib import Path

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.checkpoint import note_of, weights_of
from mmseg_eomt.adapters.names import adapter_names, plain_name, tuner_layers
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.sources import is_whole


def segmentor_of(runner: Runner) -> nn.Module:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def is_training(runner: Runner) -> bool:
    """Whether ``Runner.train`` called the hook: only it builds the optimizer."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def prepare_run(runner: Runner) -> None:
    """Check the model and, in training, its data, and settle what is resumed; a second call changes nothing."""
    check_split(segmentor_of(runner))
    if is_training(runner):
        check_classes(runner)
        resume_own_run(runner)


def check_split(model: nn.Module) -> None:
    """Make sure that backbone and head together are one whole ViT.

    Raises:
        ValueError: If a model with an :class:`EoMTViT` and an :class:`EoMTHead` would leave out blocks or run some twice, if
            the two are of different size, or take their weights from different files.
    """
    vits, heads = ([m for m in model.modules() if isinstance(m, kind)] for kind in (EoMTViT, EoMTHead))
    for vit, head in zip(vits, heads):
        for name in ('num_joint_blocks', 'arch', 'patch_size', 'init_cfg'):
            given = getattr(vit, name), getattr(head, name)
            if given[0] != given[1]:
                raise ValueError(
                    f'{name} of backbone and decode_head must be equal, since they are parts of one ViT: '
                    f'got {given[0]} and {given[1]}.'
                )


def check_classes(runner: Runner) -> None:
    """Compare the head's classes with the training data's.

    Raises:
        ValueError: If their numbers differ: a class too many never occurs, one too few stops training later.
    """
    classes = getattr(runner.train_dataloader.dataset, 'metainfo', {}).get('classes')
    for head in segmentor_of(runner).modules():
        if isinstance(head, EoMTHead) and classes and len(classes) != head.num_classes:
            raise ValueError(
                f'The training data has {len(classes)} classes, but num_classes of decode_head is {head.num_classes}: '
                f'set model.decode_head.num_classes={len(classes)}.'
            )


def check_weights(runner: Runner, checkpoint: dict) -> None:
    """Make sure that a checkpoint fills the EoMT parts of the model; mmengine would go on without what is missing.

    Adapters are checked elsewhere. While training, the class head may be missing or of another number of classes: it starts
    anew.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names.
    """
    model, given, note = segmentor_of(runner), weights_of(checkpoint), note_of(checkpoint)
    if note is not None and not tuner_layers(model):
        return  # without adapters the loader of its weights refuses it
    given = {name.removeprefix('module.'): value for name, value in given.items() if isinstance(value, Tensor)}
    prefixes = tuple(f'{name}.' for name, m in model.named_modules() if isinstance(m, (EoMTViT, EoMTHead)))
    absent, adapters = [], set(adapter_names(model))
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        if not name.startswith(prefixes) or name in adapters or name.endswith('.pos_embed'):
            continue
        if '.class_head.' in name and is_training(runner):
            continue
        value = given.get(name, given.get(plain))
        if value is None or value.shape != parameter.shape:
            found = 'absent' if value is None else tuple(value.shape)
            absent.append(f'{plain}: checkpoint {found}, model {tuple(parameter.shape)}')
    if absent:
        raise ValueError(
            f'The checkpoint does not fit the model in {len(absent)} weights: {"; ".join(absent[:3])}'
            f'{"; …" if len(absent) > 3 else ""}. Set arch and num_classes as they were in training; a DINOv2 file goes '
            f'into init_cfg of backbone and decode_head, not into load_from.'
        )


def resume_own_run(runner: Runner) -> None:
    """Let ``--resume`` go on from this run's last whole checkpoint, also where the config has ``load_from``.

    mmengine would resume from ``load_from``, which is the other run that this one started from. A ``load_from`` inside the
    work directory is resumed as asked, and so is any where the work directory has no checkpoint yet. A run that was killed
    while it wrote a checkpoint goes on from the one before.
    """
    if not runner._resume:
        return
    work_dir, asked = Path(runner.work_dir), runner._load_from
    if asked and work_dir.resolve() in Path(asked).resolve().parents:
        return
    last = last_whole_checkpoint(runner)
    if last is None:
        return
    if asked:
        runner.logger.info(f'Resuming this run from {last}; load_from={asked} was where it started.')
    runner._load_from = str(last)


def last_whole_checkpoint(runner: Runner) -> Path | None:
    """The latest checkpoint of the work directory that was written to its end; what is skipped is warned of."""
    named = find_latest_checkpoint(runner.work_dir)
    found = [*Path(runner.work_dir).glob('iter_*.pth'), *Path(runner.work_dir).glob('epoch_*.pth')]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    if named and Path(named) not in found and Path(named).is_file():  # saved elsewhere, or under another name
        found.insert(0, Path(named))
    for path in found:
        if is_whole(path):
            return path
        runner.logger.warning(f'{path} is no whole checkpoint (was the run killed while it wrote it?) and is skipped.')
    return None
