"""What a run would find out too late: checks that both hooks make."""

import re
from pathlib import Path

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

from mmseg_eomt.adapters.checkpoint import weights_of
from mmseg_eomt.adapters.loading import is_tagged, starts_training, unwrapped
from mmseg_eomt.engine.classes import check_classes
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.files import is_whole
from mmseg_eomt.weights.fit import fit_checkpoint


def segmentor_of(runner: Runner) -> nn.Module:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    return unwrapped(runner.model)


def is_training(runner: Runner) -> bool:
    """Whether ``Runner.train`` called the hook: only it builds the optimizer."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def prepare_run(runner: Runner) -> None:
    """Check the model and, in training, its data, and settle what is resumed; a second call changes nothing."""
    check_split(segmentor_of(runner))
    check_outputs(segmentor_of(runner))
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


def check_resumable(runner: Runner, checkpoint: dict) -> None:
    """Make sure that a checkpoint which is to be resumed holds more than weights.

    Raises:
        ValueError: If it does not, with what it lacks.
    """
    absent = [part for part in ('message_hub', 'optimizer') if part not in checkpoint]
    if runner._resume and is_training(runner) and absent:
        raise ValueError(f'{runner._load_from} holds no {absent[-1]} to resume: to start from it, leave out --resume.')


def check_weights(runner: Runner, checkpoint: dict) -> None:
    """Fit a checkpoint to the EoMT parts of the model, in place. In a new training run, heads may start anew.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names, or if there is nothing to resume.
    """
    check_resumable(runner, checkpoint)
    weights = weights_of(checkpoint)
    if is_tagged(weights):  # adapters that no LoRAHook has put into place are refused by the loader of the weights
        return
    source = runner._load_from or 'The checkpoint'
    fitted = fit_checkpoint(segmentor_of(runner), weights, starts_training(runner), source)
    if fitted is weights:
        return
    if is_training(runner) and runner._resume:
        raise ValueError(
            f'{source} is of a model with another img_size than the run to resume: set it as it was, or start a new run '
            f'from it without --resume.'
        )
    checkpoint['state_dict'] = fitted


def resume_own_run(runner: Runner) -> None:
    """Let ``--resume`` go on from this run's last whole checkpoint, also where the config has ``load_from``.

    mmengine would resume from ``load_from``, which is the other run that this one started from. A checkpoint of this run
    that ``load_from`` names is resumed as asked, and so is any where the work directory has none yet. A run that was
    killed while it wrote a checkpoint goes on from the one before.
    """
    if not runner._resume:
        return
    work_dir, asked = Path(runner.work_dir), runner._load_from
    if asked and work_dir.resolve() == Path(asked).resolve().parent and _number(Path(asked)) is not None:
        return
    last = last_whole_checkpoint(runner)
    if last is None:
        return
    if asked:
        runner.logger.info(f'Resuming this run from {last}; load_from={asked} was where it started.')
    runner._load_from = str(last)


def last_whole_checkpoint(runner: Runner) -> Path | None:
    """The run's last checkpoint, or the last one before it that was written to its end; what is skipped is warned of."""
    named = find_latest_checkpoint(runner.work_dir)
    last = Path(named) if named else None
    if last is not None and not last.is_file():  # the work directory has moved
        last = Path(runner.work_dir) / last.name
    numbered = {path: _number(path) for path in Path(runner.work_dir).glob('*.pth')}
    limit = _number(last) if last is not None else None
    found = [path for path, number in numbered.items() if number is not None and (limit is None or number < limit)]
    found.sort(key=lambda path: numbered[path], reverse=True)
    for path in [last, *found] if last is not None and last.is_file() else found:
        if is_whole(path):
            return path
        runner.logger.warning(f'{path} is no whole checkpoint (was the run killed while it wrote it?) and is skipped.')
    return None


def _number(path: Path) -> int | None:
    """The iteration or epoch in the name of a checkpoint that a run has written."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
    return int(found.group(1)) if found else None
