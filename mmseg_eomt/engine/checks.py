"""What a run would find out too late: checks that both hooks make."""

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import nn

from mmseg_eomt.adapters.checkpoint import weights_of
from mmseg_eomt.adapters.loading import is_tagged, starts_training, unwrapped
from mmseg_eomt.engine.classes import check_classes
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.weights.fit import fit_checkpoint


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


def check_weights(runner: Runner, checkpoint: dict) -> None:
    """Fit a checkpoint to the EoMT parts of the model, in place. In a new training run, heads may start anew.

    Raises:
        ValueError: If weights are missing or of another shape, with some of their names.
    """
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
