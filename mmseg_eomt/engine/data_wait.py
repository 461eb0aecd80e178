"""What a run says when its data comes slower than it trains."""

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch.utils.data import DataLoader

from mmseg_eomt.data.image_cache import LoadImageFromFile
from mmseg_eomt.engine.feature_store import CachedViews


@HOOKS.register_module()
class DataWaitHook(Hook):
    """Warn once if training waits for its data, with the fraction of the time, and what to set.

    The time from the end of one iteration's hooks to the next batch is waited. It is summed over windows of iterations;
    evaluation and the first iterations, in which workers start, are not in it. It costs two looks at a clock per iteration
    and nothing in checkpoints. Of several processes the first one looks: with DDP each waits for the slowest.

    Args:
        warmup: Iterations to ignore at the start. Default: 50.
        window: Iterations to sum over. Default: 100.
        fraction: Of the time, from which on it warns. Default: 0.2.

    Raises:
        ValueError: If a number is out of range.
    """

    priority = 'LOWEST'  # behind the hooks that log and write checkpoints

    def __init__(self, warmup: int = 50, window: int = 100, fraction: float = 0.2) -> None:
        if warmup < 1 or window < 1 or not 0 < fraction < 1:
            raise ValueError(
                f'warmup and window are at least 1 and fraction is between 0 and 1, got {warmup}, {window} and {fraction}.'
            )
        self.warmup, self.window, self.fraction = warmup, window, fraction
        self._watching = False
        self._seen = 0
        self._start = self._end = self._waited = self._worked = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start to watch."""
        self._watching = is_main_process()
        self._seen = 0
        self._begin_window()

    def before_train_epoch(self, runner: Runner) -> None:
        """Exclude what was done between two epochs."""
        self._end = perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Take the time that a batch was waited for."""
        self._start = perf_counter()
        self._waited += self._start - self._end

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the time of an iteration; at the end of a window, see which fraction was waited."""
        if not self._watching:
            return
        self._end = perf_counter()
        self._worked += self._end - self._start
        self._seen += 1
        if self._seen <= self.warmup:
            self._begin_window()
        elif (self._seen - self.warmup) % self.window == 0:
            total = self._waited + self._worked
            if self._waited > self.fraction * total:
                runner.logger.warning(self._advice(runner, self._waited / total, total / self.window))
                self._watching = False
            self._begin_window()

    def after_val(self, runner: Runner) -> None:
        """Exclude an evaluation during training."""
        self._end = perf_counter()

    def _begin_window(self) -> None:
        self._waited = self._worked = 0.0
        self._end = perf_counter()

    def _advice(self, runner: Runner, fraction: float, seconds: float) -> str:
        first = runner.iter - self.window + 2  # the run's iterations, from 1
        found = remedies(runner.train_dataloader, runner.cfg.get('train_dataloader'))
        return (
            f'Training waits for data {fraction:.0%} of the time (iterations {first} to {runner.iter + 1}, '
            f'{seconds:.2f} s each): {"; ".join(found)}.'
        )


def remedies(loader: DataLoader, config: Any) -> list[str]:
    """What makes a loader faster, the cheapest first, each with the option to set.

    Args:
        loader: Of the training data.
        config: Its config, which names what it reads images with; of any other type if there is none.
    """
    workers, cores = loader.num_workers, usable_cores()
    found = []
    if workers < cores:
        found.append(f'set train_dataloader.num_workers above {workers} ({cores} cores for each process)')
    else:
        found.append(f'{workers} workers share {cores} cores: use more cores')
    if workers and not loader.persistent_workers:
        found.append('set train_dataloader.persistent_workers=True, so that workers are not started each epoch')
    uncached = [] if isinstance(loader.dataset, CachedViews) else list(_uncached_readers(config, 'train_dataloader'))
    if uncached:
        options = ' '.join(f'{place}.cache_dir=FOLDER' for place in uncached)
        found.append(f'keep decoded images, {options} (docs/train.md)')
    return found


def usable_cores() -> int:
    """CPU cores for each training process of this machine."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    # torchrun's processes share them; Slurm's tasks have cores of their own
    return max(1, allowed // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def _uncached_readers(config: Any, place: str) -> Iterator[str]:
    """Where a config, however it wraps datasets, reads images that it could keep decoded and does not."""
    if isinstance(config, dict):
        reads = config.get('type') in ('LoadImageFromFile', LoadImageFromFile)
        if reads and not config.get('cache_dir') and LoadImageFromFile.why_no_cache(config) is None:
            yield place
    elif not isinstance(config, list | tuple):
        return
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield from _uncached_readers(value, f'{place}.{key}')
