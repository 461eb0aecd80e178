"""Checks of EoMT models in every Runner, whichever hooks its config has."""

import functools
from collections.abc import Callable

from mmengine.runner import Runner
from torch import nn

from mmseg_eomt.adapters.base_weights import pretrained_sources
from mmseg_eomt.adapters.checkpoint import weights_of
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.engine.checkpoints import save_between_steps
from mmseg_eomt.engine.checks import fit_run_checkpoint, is_training, prepare_run, segmentor_of
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook
from mmseg_eomt.engine.model_note import ModelNoteHook
from mmseg_eomt.engine.random_state import RandomStateHook, gather_random_states
from mmseg_eomt.engine.resume import check_fits_run, check_resumable, settle_resume
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.patches import patch
from mmseg_eomt.weights.checkpoint import Checkpoint
from mmseg_eomt.weights.checkpoint_io import check_optimizer, naming


def check_every_run() -> None:
    """Let a Runner check its EoMT model, and what it resumes, and resume exactly; a second call changes nothing.

    The plugin's hooks check too, but a config without any of them is a valid one.
    """
    patch(Runner, 'train', _settled)
    patch(Runner, 'call_hook', _checked)
    gather_random_states()


def _has_eomt(runner: Runner) -> bool:
    return any(isinstance(module, (EoMTViT, EoMTHead)) for module in segmentor_of(runner).modules())


def _settled(train: Callable) -> Callable:
    def settled_train(self: Runner) -> nn.Module:
        if _has_eomt(self):
            settle_resume(self)  # before the data loaders are built, which need the run's seed
        return train(self)

    return settled_train


def _checked(call: Callable) -> Callable:
    def call_hook(self: Runner, fn_name: str, **kwargs) -> None:
        if fn_name == 'after_load_checkpoint':
            return _receive(self, kwargs['checkpoint'], functools.partial(call, self, fn_name, **kwargs))
        if fn_name not in ('before_run', 'before_train') or not _has_eomt(self):
            return call(self, fn_name, **kwargs)
        if fn_name == 'before_run':
            prepare_run(self)
            if not any(isinstance(hook, ModelNoteHook) for hook in self.hooks):
                self.register_hook(ModelNoteHook())
            if is_training(self) and not any(isinstance(hook, RandomStateHook) for hook in self.hooks):
                self.register_hook(RandomStateHook())
        elif fn_name == 'before_train':
            warn_of_the_start(self)
            save_between_steps(self)
        call(self, fn_name, **kwargs)

    return call_hook


def _receive(runner: Runner, checkpoint: dict, call_hooks: Callable[[], None]) -> None:
    """Check and fit a checkpoint that a Runner has read, before its hooks see it."""
    resumes, has_eomt = runner._resume and is_training(runner), _has_eomt(runner)
    source = Checkpoint.of(weights_of(checkpoint)).source
    with naming(source):
        if has_eomt:
            check_resumable(runner, checkpoint)
        if resumes and 'optimizer' in checkpoint:
            check_optimizer(checkpoint['optimizer'], source)
        fit_run_checkpoint(runner, checkpoint)
        call_hooks()
        if has_eomt:  # after the hooks, which know more of the model
            check_fits_run(runner, checkpoint)


def warn_of_the_start(runner: Runner) -> None:
    """Say what a run of another batch size, from random weights or without annealed masks would find out too late."""
    model = segmentor_of(runner)
    _compare_batch(runner)
    heads = [module for module in model.modules() if isinstance(module, EoMTHead)]
    annealed = any(isinstance(hook, MaskAnnealingHook) for hook in runner.hooks)
    if any(any(head.mask_probs) for head in heads) and not annealed:
        runner.logger.warning(
            'Masked attention stays on for the whole run; evaluation uses none. Add MaskAnnealingHook to custom_hooks.'
        )
    if not (runner._load_from or runner._resume or pretrained_sources(model) or tuner_layers(model)):
        runner.logger.warning('Neither init_cfg nor load_from names a checkpoint: the model starts from random weights.')


def _compare_batch(runner: Runner) -> None:
    """Say how many images an optimizer step sees, and warn where the config's rates are for another number."""
    batch = getattr(runner.train_dataloader, 'batch_size', None)
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', None)
    if not batch or not accumulated:  # a batch sampler, or several optimizers
        return
    processes = runner.world_size
    runner.logger.info(
        f'An optimizer step sees {batch * processes * accumulated} images: {batch} in each of {processes} process(es), '
        f'{accumulated} times. {runner.max_iters} iterations are {-(-runner.max_iters // accumulated)} steps.'
    )
    scale = runner.cfg.get('auto_scale_lr') or {}
    base = scale.get('base_batch_size')
    if base and base != batch * processes and not scale.get('enable'):
        fitting = '--auto-scale-lr' if base % processes else f'train_dataloader.batch_size={base // processes}'
        runner.logger.warning(
            f'The rates are for {base} images an iteration (auto_scale_lr.base_batch_size), and this run has '
            f'{batch * processes}. Set {fitting}; or accumulative_counts and max_iters such that a step sees as many images '
            f'and there are as many steps, and auto_scale_lr.base_batch_size={batch * processes}: docs/recipe.md.'
        )
