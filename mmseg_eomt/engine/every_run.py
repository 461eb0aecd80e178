"""Checks of EoMT models in every Runner, whichever hooks its config has."""

from collections.abc import Callable

from mmengine.runner import Runner
from torch import nn

from mmseg_eomt.adapters.base import pretrained_sources
from mmseg_eomt.adapters.names import tuner_layers
from mmseg_eomt.engine.checkpoints import save_between_steps
from mmseg_eomt.engine.checks import is_training, prepare_run, segmentor_of
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook
from mmseg_eomt.engine.model_note import ModelNoteHook
from mmseg_eomt.engine.random_state import RandomStateHook, gather_random_states
from mmseg_eomt.engine.resume import check_fits_run, check_resumable, settle_resume
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.patching import patch


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
        if fn_name not in ('before_run', 'after_load_checkpoint', 'before_train') or not _has_eomt(self):
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
        else:
            check_resumable(self, kwargs['checkpoint'])
        call(self, fn_name, **kwargs)
        if fn_name == 'after_load_checkpoint':  # after the hooks, which know more of the model
            check_fits_run(self, kwargs['checkpoint'])

    return call_hook


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
