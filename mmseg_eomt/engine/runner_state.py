"""What mmengine's Runner keeps to itself: the one file that reads or sets private attributes of it."""

from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.models import BaseSegmentor

from mmseg_eomt.adapters.loading import unwrapped


def segmentor_of(runner: Runner) -> BaseSegmentor:
    """The segmentor inside wrappers for DDP and test-time augmentation."""
    return unwrapped(runner.model)


def is_training(runner: Runner) -> bool:
    """Whether ``Runner.train`` has begun: only it builds the optimizer."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def asked_to_resume(runner: Runner) -> bool:
    """Whether the Runner resumes, whatever it is to do."""
    return bool(runner._resume)


def is_resuming(runner: Runner) -> bool:
    """Whether this is a training run that goes on from a checkpoint."""
    return asked_to_resume(runner) and is_training(runner)


def checkpoint_path(runner: Runner) -> str | None:
    """What the Runner loads or resumes: its ``load_from``, or what :func:`set_resume` has chosen."""
    return runner._load_from


def set_resume(runner: Runner, path: str | None) -> None:
    """Let the Runner resume from a checkpoint; with None, start from its ``load_from``."""
    runner._resume = path is not None
    runner._load_from = path or runner._load_from


def set_seed(runner: Runner, seed: int) -> int | None:
    """Seed all generators as the Runner does when it resumes, if the config has another seed, which is returned."""
    given = runner._randomness_cfg.get('seed')
    if seed != given:
        runner._randomness_cfg.update(seed=seed)
        runner.set_randomness(**runner._randomness_cfg)
    return given


def set_test(runner: Runner, dataloader: dict[str, Any], evaluator: dict[str, Any]) -> None:
    """Let the next ``Runner.test`` evaluate on other data, with the model as it is loaded."""
    settings = {'type': 'TestLoop', **(runner.cfg.get('test_cfg') or {})}
    runner._test_loop = dict(settings, dataloader=dataloader, evaluator=evaluator)
    for name in [name for name in runner.message_hub.log_scalars if name.startswith('test/')]:
        del runner.message_hub.log_scalars[name]  # the log would go on naming what an earlier evaluator has measured


def train_on_views(runner: Runner, dataset: Any) -> None:
    """Let the training loop take its batches from a dataset of views, with the loader that the config describes.

    Args:
        runner: Whose loop has not started.
        dataset: As :class:`~mmseg_eomt.data.fixed_views.ViewSampler` takes it.
    """
    loop = runner.train_loop
    config = dict(runner.cfg.train_dataloader, dataset=dataset)
    config['sampler'] = dict(type='ViewSampler', sampler=config['sampler'])
    loop.dataloader = runner.build_dataloader(config, runner.seed, runner._randomness_cfg.get('diff_rank_seed', False))
    if hasattr(loop, 'dataloader_iterator'):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
