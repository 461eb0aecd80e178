"""Hooks for tests of a crash: the process ends, as by a power cut, at the worst moments."""

import functools
import os
import resource
import signal
from pathlib import Path

from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class KilledWhileSaving(Hook):
    """Kill the process when half of the checkpoint of iteration ``at_iter`` is in the file, whoever writes it."""

    def __init__(self, at_iter: int) -> None:
        self.at_iter = at_iter

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if checkpoint['meta']['iter'] == self.at_iter:
            earlier = max(path.stat().st_size for path in Path(runner.work_dir).glob('*.pth'))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_FSIZE, (earlier // 2, earlier // 2))


@HOOKS.register_module()
class KilledWhileDeleting(Hook):
    """Kill the process when the first outdated checkpoint, or the first best one, is gone."""

    def __init__(self, best: bool) -> None:
        self.best = best

    def before_train(self, runner) -> None:
        remove = LocalBackend.remove

        def remove_and_die(backend, path: str) -> None:
            remove(backend, path)
            if Path(path).name.startswith('best_') == self.best:
                os.kill(os.getpid(), signal.SIGKILL)

        LocalBackend.remove = remove_and_die

    def after_val_epoch(self, runner, metrics: dict) -> None:
        metrics['mIoU'] = runner.iter  # better each time


@HOOKS.register_module()
class KilledBeforeNaming(Hook):
    """Kill the process when the checkpoint of iteration ``at_iter`` is written, and ``last_checkpoint`` is not yet."""

    def __init__(self, at_iter: int) -> None:
        self.at_iter = at_iter

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if checkpoint['meta']['iter'] == self.at_iter:
            os.replace = functools.partial(self._replace, os.replace)

    @staticmethod
    def _replace(replace, old, new) -> None:
        if Path(new).name == 'last_checkpoint':
            os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)


@HOOKS.register_module()
class KilledWhileEvaluating(Hook):
    """Kill the process in the first evaluation."""

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class KilledAtIteration(Hook):
    """Kill the process after iteration ``at_iter``."""

    def __init__(self, at_iter: int) -> None:
        self.at_iter = at_iter

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.at_iter:
            os.kill(os.getpid(), signal.SIGKILL)
