"""A run's checkpoints: written whole, the outdated ones deleted last, and with the random numbers to go on from exactly."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop

from mmseg_eomt.engine.optimizer_steps import accumulative_counts
from mmseg_eomt.engine.runner_state import checkpoint_path, is_resuming
from mmseg_eomt.whole import whole_file

RANDOM_STATE = 'random_state'  # in a checkpoint: a list with the state of each process


def register_whole_checkpoints() -> None:
    """Let ``CheckpointHook`` of a config be :class:`WholeCheckpointHook`, and what mmengine writes to a local file be whole.

    mmengine 0.10 writes into the file itself, and deletes outdated checkpoints, with ``max_keep_ckpts=1`` the only one,
    before it writes the next. Goes when mmengine writes beside the file and deletes afterwards.
    """
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    HOOKS.register_module(name='CheckpointHook', module=WholeCheckpointHook, force=True)


class WholeFileBackend(LocalBackend):
    """mmengine's, which ``Runner.save_checkpoint`` writes with: a file is there whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file."""
        with whole_file(filepath) as new:
            super().put(obj, new)


class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook of the same arguments, for runs that may be killed at any moment and are resumed exactly.

    A checkpoint is written, then its name into ``last_checkpoint``, and outdated ones are deleted after both. It holds the
    random state of every process, and none is written inside a gradient accumulation (:func:`save_between_steps`).
    """

    accumulative_counts = 1

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if meta['iter'] % self.accumulative_counts and meta['iter'] != runner.max_iters:
            return  # of a new best score; a run that is resumed from the checkpoint before goes through the evaluation again
        for hook in runner.hooks:
            if isinstance(hook, RandomStateHook):
                hook.gather()  # hooks that fill a checkpoint are called in the first process alone
        outdated = self._note_kept(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with whole_file(Path(runner.work_dir) / 'last_checkpoint') as file:
                file.write_text(str(self.last_ckpt))
            self._delete(outdated)

    def _note_kept(self, runner: Runner, step: int) -> str | None:
        """Note which checkpoints are kept, and the one that is outdated by the next."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return None
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        outdated = self.keep_ckpt_ids.popleft() if full else None
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated)) if full else None

    def _delete(self, path: str | None) -> None:
        if path and self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif path and self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best or not hasattr(self, 'file_backend'):  # nothing has been trained, and so nothing was written
            return super()._save_best_checkpoint(runner, metrics)
        earlier = self._best
        self._best = dict.fromkeys(earlier)  # mmengine deletes those that it knows before it writes others
        super()._save_best_checkpoint(runner, metrics)
        new = self._best
        self._best = {key: new[key] or path for key, path in earlier.items()}
        for key, path in earlier.items():
            if not (path and new[key] and path not in new.values() and is_main_process()):
                continue
            # a copied work directory still names the best checkpoint of the run that it is a copy of
            if Path(path).resolve().parent == Path(self.out_dir).resolve():
                self._delete(path)
                runner.logger.info(f'The previous best checkpoint {path} is removed')
            else:
                runner.logger.warning(f'{path}, an earlier best checkpoint, is not in {self.out_dir} and is kept.')

    @property
    def _best(self) -> dict[str, str | None]:
        """The best checkpoint by each metric, which mmengine keeps in another place if there is one metric."""
        return {'': self.best_ckpt_path} if len(self.key_indicators) == 1 else self.best_ckpt_path_dict

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = paths


def save_between_steps(runner: Runner) -> None:
    """Round the intervals of checkpoints up to whole steps of the optimizer, and say so.

    The gradients that are accumulated so far are in no checkpoint: a run that is resumed inside an accumulation would lose
    them.
    """
    counts = accumulative_counts(runner.optim_wrapper) or 1
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if not isinstance(hook, WholeCheckpointHook):
            runner.logger.warning(
                f"{type(hook).__name__} is not mmseg_eomt's: a run that is killed while it saves may lose its checkpoint. "
                f"Set type='CheckpointHook', by name, or derive it from mmseg_eomt.engine.checkpoints.WholeCheckpointHook."
            )
        hook.accumulative_counts = unit = counts
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


class RandomStateHook(Hook):
    """Keep the random state of PyTorch, NumPy and Python: evaluation does not move it, and a resumed run goes on from it.

    Point sampling and dropout draw from PyTorch's, augmentations without worker processes from the two others. Worker
    processes have their own, which mmengine brings back by going through the data of the iterations that are over.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._before_val: dict[str, Any] | None = None
        self._of_all: list[dict[str, Any]] | None = None
        self._resumed: dict[str, Any] | None = None

    def before_val(self, runner: Runner) -> None:
        """Note the state that an evaluation moves."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Put it back."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None

    def gather(self) -> None:
        """Fetch the state of every process for the next checkpoint; within an evaluation, that before it."""
        self._of_all = all_gather_object(self._before_val or random_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the state in a checkpoint that can be resumed."""
        if 'optimizer' in checkpoint:
            checkpoint[RANDOM_STATE] = self._of_all or [self._before_val or random_state()]
        self._of_all = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take this process's state from a checkpoint that is resumed.

        Raises:
            ValueError: If it is damaged.
        """
        if not is_resuming(runner) or RANDOM_STATE not in checkpoint:
            return
        states = checkpoint[RANDOM_STATE]
        try:
            if isinstance(states, dict):  # as version 0.1.0 wrote it
                states = [states]
            state = states[get_rank() if get_rank() < len(states) else 0]
            set_random_state(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f'The random state in {checkpoint_path(runner)} is damaged: resume an earlier checkpoint. ({error!r})'
            ) from error
        self._resumed = state

    def before_train_epoch(self, runner: Runner) -> None:
        """Draw on where a resumed run stopped, once the data that was trained on is skipped."""
        loop, state, self._resumed = runner.train_loop, self._resumed, None
        if hasattr(loop, 'dataloader_iterator'):
            if loop.iter:
                loop.dataloader_iterator = _ResumedData(loop, state)
        elif state is not None:  # a loop by epochs skips nothing
            set_random_state(state)


class _ResumedData:
    """The data of a resumed iteration-based loop; gives way to the loop's own when training starts."""

    def __init__(self, loop: BaseLoop, state: dict[str, Any] | None) -> None:
        self._loop, self._state, self._data = loop, state, loop.dataloader_iterator
        self._left = 0 if hasattr(self._data, 'skip_iter') else loop.iter  # onedl-mmengine has a method that skips
        self._done = loop.iter >= loop.max_iters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __next__(self) -> Any:
        if self._left:
            self._left -= 1
            return None if self._done else next(self._data)  # reading all data of a run that is done would take hours
        if hasattr(self._data, '_ensure_iterator'):  # onedl-mmengine makes it now, with a seed that it draws
            self._data._ensure_iterator()
        if self._state is not None:
            set_random_state(self._state)
        self._loop.dataloader_iterator = self._data
        return next(self._data)


def random_state() -> dict[str, Any]:
    """State of the random numbers of PyTorch, Python and NumPy in this process, in plain values."""
    numpy = np.random.get_state(legacy=False)
    state = dict(
        cpu=torch.get_rng_state(),
        python=random.getstate(),
        numpy=dict(
            key=torch.from_numpy(numpy['state']['key'].astype('int64')),  # plain, as checkpoints are read
            pos=int(numpy['state']['pos']),
            has_gauss=int(numpy['has_gauss']),
            gauss=float(numpy['gauss']),
        ),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from what :func:`random_state` returned."""
    torch.set_rng_state(state['cpu'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
    if 'numpy' in state:  # version 0.1.0 noted PyTorch's alone
        version, numbers, gauss = state['python']
        random.setstate((version, tuple(numbers), gauss))
        numpy = state['numpy']
        key = numpy['key'].cpu().numpy().astype('uint32')
        np.random.set_state(('MT19937', key, numpy['pos'], numpy['has_gauss'], numpy['gauss']))
