"""The published learning rate schedule."""

from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmseg.registry import PARAM_SCHEDULERS

from mmseg_eomt.engine.layer_decay import NEW, PRETRAINED


@PARAM_SCHEDULERS.register_module()
class TwoWarmupsPolyLR(LRSchedulerMixin, _ParamScheduler):
    """Warm up the new parts while the pretrained ones stand still, then the pretrained ones; then both fall polynomially.

    Steps are the optimizer's: with ``accumulative_counts=n`` one takes n iterations, so that warm-ups are as long in images
    as without. A group's rate depends on the step alone, and it has to be the only schedule of the rates.

    Args:
        optimizer: The OptimWrapper, built by :class:`~mmseg_eomt.engine.layer_decay.EoMTOptimWrapperConstructor`.
        warmup_steps: Steps in which the new parts' rate rises linearly from 0, and steps after those in which the
            pretrained parts' does. Default: (500, 1000).
        power: Exponent of the fall to 0 at the end of the run. Default: 0.9.
        begin: First iteration. Default: 0.
        end: Iteration at which the rates reach 0; the Runner puts the end of the run if ``by_epoch=False`` is in the config.
        last_step: Step to go on from, set by the Runner. Default: -1.
        by_epoch: Must be False, and has to be given in the config so that the Runner knows it. Default: False.
        verbose: Whether to print each rate. Default: False.

    Raises:
        ValueError: If the run ends before the warm-ups, ``by_epoch`` is True, or the groups have no ``part``.

    Source: public implementation ``training/two_stage_warmup_poly_schedule.py``.
    """

    def __init__(
        self,
        optimizer,
        warmup_steps: tuple[int, int] = (500, 1000),
        power: float = 0.9,
        begin: int = 0,
        end: int = int(1e9),
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
    ) -> None:
        self.accumulative_counts = getattr(optimizer, '_accumulative_counts', 1)
        self.warmup_steps = tuple(warmup_steps)
        self.power = power
        self.num_steps = -(-(end - begin) // self.accumulative_counts)
        if by_epoch:
            raise ValueError('TwoWarmupsPolyLR counts iterations: set by_epoch=False.')
        if sum(self.warmup_steps) >= self.num_steps:
            raise ValueError(
                f'The warm-ups of TwoWarmupsPolyLR take {" + ".join(map(str, self.warmup_steps))} steps, but it has '
                f'{self.num_steps}: {end - begin} iterations, {self.accumulative_counts} a step. Lower its warmup_steps, '
                f'or train longer; and by_epoch=False has to be in its config.'
            )
        groups = getattr(optimizer, 'optimizer', optimizer).param_groups
        if not all(group.get('part') in (PRETRAINED, NEW) for group in groups):
            raise ValueError("TwoWarmupsPolyLR needs optim_wrapper.constructor='EoMTOptimWrapperConstructor'.")
        super().__init__(optimizer, begin=begin, end=end, last_step=last_step, by_epoch=by_epoch, verbose=verbose)

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from a checkpoint's step.

        Raises:
            ValueError: If it was saved in a run of another length, accumulation or schedule: its steps would be others.
        """
        for name in ('warmup_steps', 'power', 'begin', 'end', 'accumulative_counts'):
            saved, own = state_dict[name], getattr(self, name)
            if saved != own:
                raise ValueError(
                    f'The run to resume had {name}={saved} in its TwoWarmupsPolyLR, here it is {own}: set the same (end is '
                    f'max_iters), or start a new run from the checkpoint with load_from.'
                )
        super().load_state_dict(state_dict)

    def _get_value(self) -> list[float]:
        step = self.last_step // self.accumulative_counts
        first, second = self.warmup_steps
        share = {
            NEW: self._share(step, first, self.num_steps),
            PRETRAINED: self._share(step - first, second, self.num_steps - first),
        }
        # the wrapper adds a group without parameters or part, whose rate is logged as base_lr
        parts = [group.get('part', NEW) for group in self.optimizer.param_groups]
        return [base * share[part] for base, part in zip(self.base_values, parts)]

    def _share(self, step: int, warmup: int, num_steps: int) -> float:
        """Rate after ``step`` of ``num_steps`` as a share of the highest."""
        if step < 0:
            return 0.0
        if step < warmup:
            return step / warmup
        return (1 - (step - warmup) / (num_steps - warmup)) ** self.power
