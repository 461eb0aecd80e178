"""Learning rates that depend on the optimizer's step alone, also where gradients are accumulated."""

import math
from typing import Any

from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmseg.registry import PARAM_SCHEDULERS


def accumulative_counts(optim_wrapper: Any) -> int | None:
    """The iterations that an optimizer step takes; None for several optimizers, each of which has its own."""
    return getattr(optim_wrapper, '_accumulative_counts', None)


class OptimizerStepsLR(LRSchedulerMixin, _ParamScheduler):
    """A schedule that counts the optimizer's steps: with ``accumulative_counts=n`` one takes n iterations.

    So warm-ups are as long in images as without accumulation, and all iterations of a step have one learning rate, which
    mmengine's own schedules change at each iteration. It depends on the step alone, and has to be the only schedule.

    Args:
        optimizer: The OptimWrapper.
        warmup_steps: Steps of each warm-up, one after the other.
        begin: First iteration. Default: 0.
        end: Iteration at which the schedule ends; the Runner puts the end of the run if ``by_epoch=False`` is in the config.
        last_step: Step to go on from, set by the Runner. Default: -1.
        by_epoch: Must be False, and has to be given in the config so that the Runner knows it. Default: False.
        verbose: Whether to print each learning rate. Default: False.

    Raises:
        ValueError: If the run ends before the warm-ups, or ``by_epoch`` is True.
    """

    resumed: tuple[str, ...] = ('warmup_steps', 'begin', 'end', 'accumulative_counts')  # what a resumed run must have alike

    def __init__(
        self,
        optimizer: OptimWrapper,
        warmup_steps: tuple[int, ...],
        begin: int = 0,
        end: int = int(1e9),
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
    ) -> None:
        name = type(self).__name__
        self.accumulative_counts = accumulative_counts(optimizer) or 1
        self.warmup_steps = tuple(warmup_steps)
        self.num_steps = -(-(end - begin) // self.accumulative_counts)
        if by_epoch:
            raise ValueError(f'{name} counts iterations: set by_epoch=False.')
        if sum(self.warmup_steps) >= self.num_steps:
            raise ValueError(
                f'The warm-ups of {name} take {" + ".join(map(str, self.warmup_steps))} steps, but it has '
                f'{self.num_steps}: {end - begin} iterations, {self.accumulative_counts} per step. Lower its warmup_steps, '
                f'or train longer; and by_epoch=False has to be in its config.'
            )
        super().__init__(optimizer, begin=begin, end=end, last_step=last_step, by_epoch=by_epoch, verbose=verbose)

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint's step.

        Raises:
            ValueError: If it was saved in a run of another length, accumulation or schedule: its steps would be others.
        """
        for name in self.resumed:
            saved, own = state_dict[name], getattr(self, name)
            if saved != own:
                raise ValueError(
                    f'The run to resume had {name}={saved} in its {type(self).__name__}, here it is {own}: set the same '
                    f'(end is max_iters), or start a new run from the checkpoint with load_from.'
                )
        super().load_state_dict(state_dict)

    @property
    def step_now(self) -> int:
        """The optimizer's step that the present iteration belongs to, counted from 0."""
        return self.last_step // self.accumulative_counts


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(OptimizerStepsLR):
    """Warm up linearly from 0, then fall along half a cosine: PMT's schedule.

    mmengine's ``LinearLR`` cannot start from 0, as it computes a learning rate from the one before.

    Args:
        optimizer: The OptimWrapper.
        warmup_steps: The optimizer's steps in which the learning rate rises. Default: 6000.
        min_lr: Learning rate at the end of the run. Default: 1e-9.
        kwargs: ``begin``, ``end``, ``last_step``, ``by_epoch`` and ``verbose``: as of :class:`OptimizerStepsLR`.

    Raises:
        ValueError: If the run ends before the warm-up, or ``by_epoch`` is True.

    Source: public implementation of PMT, ``image/training/warmup_cosine_schedule.py``.
    """

    resumed = (*OptimizerStepsLR.resumed, 'min_lr')

    def __init__(self, optimizer: OptimWrapper, warmup_steps: int = 6000, min_lr: float = 1e-9, **kwargs: Any) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, (warmup_steps,), **kwargs)

    def _get_value(self) -> list[float]:
        (warmup,), step = self.warmup_steps, self.step_now
        if step < warmup:
            return [base * step / warmup for base in self.base_values]
        share = (1 + math.cos(math.pi * (step - warmup) / (self.num_steps - warmup))) / 2
        return [self.min_lr + (base - self.min_lr) * share for base in self.base_values]
