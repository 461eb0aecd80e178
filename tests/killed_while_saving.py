"""A hook for a test of a crash: the process ends, as by a power cut, half through a checkpoint."""

import os
import signal

from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class KilledWhileSaving(Hook):
    """Write half of the checkpoint of iteration ``at_iter``, then kill the process."""

    def __init__(self, at_iter: int) -> None:
        self.at_iter = at_iter

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if checkpoint['meta']['iter'] != self.at_iter:
            return

        def put(self, data: bytes, path: str) -> None:
            with open(path, 'wb') as file:
                file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        LocalBackend.put = put
