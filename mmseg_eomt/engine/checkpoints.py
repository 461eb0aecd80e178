"""How a Runner writes its checkpoints: whole, the outdated ones deleted last, and none inside a gradient accumulation."""

import builtins
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.hooks import checkpoint_hook as checkpoint_hook_module
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmseg_eomt.patches import patch
from mmseg_eomt.whole import whole_file


def write_whole_checkpoints() -> None:
    """Let a run that is killed at any moment have its last checkpoint; a second call changes nothing.

    mmengine 0.10 writes into the file itself, and deletes outdated checkpoints, with ``max_keep_ckpts=1`` the only one,
    before it writes the next. Goes when mmengine writes beside the file and deletes afterwards.
    """
    patch(LocalBackend, 'put', _whole)
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        patch(CheckpointHook, name, _deleting_last)
    patch(CheckpointHook, '_save_checkpoint_with_step', _between_steps)
    checkpoint_hook_module.open = _open_whole  # which it calls for the file last_checkpoint alone


def _whole(put: Callable) -> Callable:
    def put_whole(self: LocalBackend, obj: bytes, filepath: str | Path) -> None:
        with whole_file(filepath) as new:
            put(self, obj, new)

    return put_whole


@contextmanager
def _open_whole(path: str | Path, mode: str = 'r') -> Iterator[TextIO]:
    if mode == 'r':
        with builtins.open(path) as file:
            yield file
        return
    with whole_file(path) as new, builtins.open(new, mode) as file:
        yield file


class _DeletingLater:
    """A file backend that notes what is to be deleted."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.noted: list[tuple[Callable, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.noted.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.noted.append((self._backend.rmtree, path))


def _deleting_last(save: Callable) -> Callable:
    def save_and_delete(self: CheckpointHook, runner: Runner, *args, **kwargs) -> None:
        if not hasattr(self, 'file_backend'):  # nothing has been trained, and so nothing was written
            return save(self, runner, *args, **kwargs)
        backend, self.file_backend = self.file_backend, _DeletingLater(self.file_backend)
        try:
            save(self, runner, *args, **kwargs)
            noted = self.file_backend.noted
        finally:
            self.file_backend = backend
        written = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for delete, path in noted:
            if path in written:
                continue
            # a copied work directory still names the best checkpoint of the run that it is a copy of
            if Path(path).resolve().parent == Path(self.out_dir).resolve():
                delete(path)
            else:
                runner.logger.warning(f'{path}, an earlier best checkpoint, is not in {self.out_dir} and is kept.')

    return save_and_delete


def _between_steps(save: Callable) -> Callable:
    """Skip the checkpoint that notes a new best score where it would be inside a gradient accumulation.

    A run resumed from the one before goes through the same evaluation again.
    """

    def save_between_steps(self: CheckpointHook, runner: Runner, step: int, meta: dict, *args, **kwargs) -> None:
        counts = getattr(self, '_eomt_counts', 1)
        if meta['iter'] % counts == 0 or meta['iter'] == runner.max_iters:
            save(self, runner, step, meta, *args, **kwargs)

    return save_between_steps


def save_between_steps(runner: Runner) -> None:
    """Round the intervals of checkpoints up to whole steps of the optimizer, and say so.

    The gradients that are accumulated so far are in no checkpoint: a run that is resumed inside an accumulation would lose
    them.
    """
    counts = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or counts == 1:
            continue
        hook._eomt_counts = unit = counts
        given = hook.interval, hook.save_begin
        if hook.by_epoch:
            if not isinstance(runner.train_loop, EpochBasedTrainLoop):
                continue  # it saves at the end alone
            unit = counts // math.gcd(counts, len(runner.train_dataloader))  # so many epochs are whole steps
        interval, begin = (
            -(-number // unit) * unit if number > 0 else number for number in (hook.interval, hook.save_begin)
        )
        if (interval, begin) != given:
            what = 'epochs' if hook.by_epoch else 'iterations'
            runner.logger.warning(
                f'Checkpoints are saved every {interval} {what}, not every {hook.interval}: a step of the optimizer takes '
                f'{counts} iterations (accumulative_counts), and a run cannot be resumed exactly within one.'
            )
            hook.interval, hook.save_begin = interval, begin
