"""The hook that raises the margin of a cosine class head."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmseg_eomt.anomaly.losses import MarginClassificationLoss


@HOOKS.register_module()
class MarginWarmupHook(Hook):
    """Raise the margin of ``cosine_head`` from 0 to its value, evenly over the first part of a run.

    Without this hook it is the whole margin from the start, which pushes queries that do not find their class yet. It
    depends on the iteration alone, so a resumed run goes on where it stopped. It is logged as ``margin``.

    Args:
        fraction: Of the run's iterations. Default: 0.1.

    Raises:
        ValueError: If the fraction is not from 0 to 1, or the model has no head with a margin.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f'fraction of MarginWarmupHook is from 0 to 1, got {fraction}.')
        self.fraction = fraction

    def before_train(self, runner: Runner) -> None:
        """Find the losses with a margin."""
        self._losses = [module for module in runner.model.modules() if isinstance(module, MarginClassificationLoss)]
        if not self._losses:
            raise ValueError(
                "MarginWarmupHook needs a model with decode_head=dict(type='EoMTAnomalyHead', cosine_head=dict(margin=…)): "
                'set it, or leave the hook out.'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set and log the margin of this iteration."""
        risen = min(1.0, runner.iter / (self.fraction * runner.max_iters)) if self.fraction else 1.0
        for loss in self._losses:
            loss.current_margin.fill_(risen * loss.margin)
        runner.message_hub.update_scalar('train/margin', risen * self._losses[0].margin)
