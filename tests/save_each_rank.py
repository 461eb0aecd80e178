"""A hook for the two-process tests, which the training processes import."""

import atexit
import contextlib
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class SaveEachRank(Hook):
    """Write the parameters and buffers of every process, and the images it saw, after training."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.images: list[str] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images += [sample.img_path for sample in data_batch['data_samples']]

    def after_train(self, runner):
        parameters = dict(runner.model.module.named_parameters())
        left = self.out / f'left_{get_rank()}.txt'
        buffers = dict(runner.model.module.named_buffers())
        saved = dict(parameters=parameters, buffers=buffers, images=self.images, threads=threads())
        torch.save(saved, self.out / f'rank_{get_rank()}.pth')
        AT_THE_END.append(lambda: left.write_text('\n'.join(threads())))


def threads() -> list[str]:
    """The names of this process's threads, those of libraries too (Linux)."""
    names = []
    for task in Path('/proc/self/task').iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.append((task / 'comm').read_text().strip())
    return names


AT_THE_END = []
# registered before the process group is made, and so called after it was left
atexit.register(lambda: [call() for call in AT_THE_END])
