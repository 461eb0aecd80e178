"""A hook for the two-process tests, which the training processes import."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmseg.registry import HOOKS


@HOOKS.register_module()
class SaveEachRank(Hook):
    """Write the parameters of every process, and the images it saw, after training."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.images: list[str] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images += [sample.img_path for sample in data_batch['data_samples']]

    def after_train(self, runner):
        parameters = dict(runner.model.module.named_parameters())
        torch.save(dict(parameters=parameters, images=self.images), self.out / f'rank_{get_rank()}.pth')
