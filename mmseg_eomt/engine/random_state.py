"""Random numbers of a training run, so that a resumed run draws what the whole run would have."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from mmseg_eomt.patches import patch

KEY = 'random_state'  # in a checkpoint: a list with the state of each process


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
        self._before_val = _read()

    def after_val(self, runner: Runner) -> None:
        """Put it back."""
        if self._before_val is not None:
            _write(self._before_val)
            self._before_val = None

    def gather(self) -> None:
        """Fetch the state of every process for the next checkpoint; within an evaluation, that before it."""
        self._of_all = all_gather_object(self._before_val or _read())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the state in a checkpoint that can be resumed."""
        if 'optimizer' in checkpoint:
            checkpoint[KEY] = self._of_all or [self._before_val or _read()]
        self._of_all = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take this process's state from a checkpoint that is resumed.

        Raises:
            ValueError: If it is damaged.
        """
        if not runner._resume or KEY not in checkpoint:
            return
        states = checkpoint[KEY]
        try:
            if isinstance(states, dict):  # as version 0.1.0 wrote it
                states = [states]
            state = states[get_rank() if get_rank() < len(states) else 0]
            _write(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f'The random state in {runner._load_from} is damaged: resume an earlier checkpoint. ({error!r})'
            ) from error
        self._resumed = state

    def before_train_epoch(self, runner: Runner) -> None:
        """Draw on where a resumed run stopped, once the data that was trained on is skipped."""
        loop, state, self._resumed = runner.train_loop, self._resumed, None
        if hasattr(loop, 'dataloader_iterator'):
            if loop.iter:
                loop.dataloader_iterator = _ResumedData(loop, state)
        elif state is not None:  # a loop by epochs skips nothing
            _write(state)


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
        if self._state is not None:
            _write(self._state)
        self._loop.dataloader_iterator = self._data
        return next(self._data)


def gather_random_states() -> None:
    """Let a checkpoint hold the random state of every process; a second call changes nothing.

    The hooks that fill a checkpoint run in the first process alone, and CheckpointHook saves in all.
    """
    patch(CheckpointHook, '_save_checkpoint_with_step', _gathered)


def _gathered(save: Callable) -> Callable:
    def save_checkpoint_with_step(self: CheckpointHook, runner: Runner, *args, **kwargs) -> None:
        for hook in runner.hooks:
            if isinstance(hook, RandomStateHook):
                hook.gather()
        save(self, runner, *args, **kwargs)

    return save_checkpoint_with_step


def _read() -> dict[str, Any]:
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


def _write(state: dict[str, Any]) -> None:
    torch.set_rng_state(state['cpu'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
    if 'numpy' in state:  # version 0.1.0 noted PyTorch's alone
        version, numbers, gauss = state['python']
        random.setstate((version, tuple(numbers), gauss))
        numpy = state['numpy']
        key = numpy['key'].cpu().numpy().astype('uint32')
        np.random.set_state(('MT19937', key, numpy['pos'], numpy['has_gauss'], numpy['gauss']))
