"""What a run's checkpoints say of its model, and whether those that it loads are of this model."""

from dataclasses import asdict
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmseg_eomt.adapters.loading import unwrapped
from mmseg_eomt.engine.checks import check_classes, check_trained_classes, is_training
from mmseg_eomt.models.arch import arch_of
from mmseg_eomt.weights.checkpoint import ARCH_NOTE, check_noted, noted_arch


class ModelNoteHook(Hook):
    """Note the arch in a checkpoint, and compare that of a loaded one, and the classes of what is evaluated.

    Every run of an EoMT has it: :mod:`~mmseg_eomt.engine.every_run` registers it.
    """

    priority = 'HIGHEST'  # ahead of the data check, which would name each file

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note what the weights do not tell, in plain values."""
        checkpoint['meta'][ARCH_NOTE] = asdict(arch_of(unwrapped(runner.model)))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the arch and, unless a new run starts from the checkpoint, the names of the classes.

        Raises:
            ValueError: If they differ.
        """
        check_noted(noted_arch(checkpoint), arch_of(unwrapped(runner.model)), runner._load_from or 'The checkpoint')
        if runner._resume or not is_training(runner):
            check_trained_classes(runner, checkpoint, is_training(runner))

    def before_val(self, runner: Runner) -> None:
        """See :func:`~.checks.check_classes`; training has called it before its first iteration."""
        if not is_training(runner):
            check_classes(runner)

    def before_test(self, runner: Runner) -> None:
        """See :func:`~.checks.check_classes`."""
        check_classes(runner)
