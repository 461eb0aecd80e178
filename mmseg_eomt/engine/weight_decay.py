"""What a schedule of the weight decay is at."""

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS


@HOOKS.register_module()
class WeightDecayLogHook(Hook):
    """Log the weight decay of each iteration as ``weight_decay``, which mmengine does for learning rates alone.

    It is the largest of the optimizer's groups: some parameters have none.
    """

    priority = 'VERY_HIGH'  # before the loggers, and before a scheduler's step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Note the largest weight decay of the optimizer."""
        decay = max(group['weight_decay'] for group in runner.optim_wrapper.param_groups)
        runner.message_hub.update_scalar('train/weight_decay', decay)
