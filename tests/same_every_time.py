"""What the sharding tests import into their processes: points that are not drawn, and a look at what each process keeps."""

from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_eomt.engine.sharding import local_bytes
from mmseg_eomt.models.losses import MaskClassificationLoss

match, mask_losses = MaskClassificationLoss.match, MaskClassificationLoss.mask_losses


@HOOKS.register_module()
class KeptByEachRank(Hook):
    """Compare masks at the same points in every image and process, and write how much of the base each process keeps."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)

    def before_run(self, runner):
        points = torch.rand(1, 128, 2, generator=torch.Generator().manual_seed(0))

        def match_at(self, mask_logits, class_logits, targets, scale):
            return match(self, mask_logits, class_logits, targets, scale, points.expand(len(mask_logits[0]), -1, -1))

        def losses_at(self, mask_logits, matches, targets, scale):
            number = matches.shape[0] * matches.shape[1]
            return mask_losses(self, mask_logits, matches, targets, scale, points.expand(number, -1, -1))

        MaskClassificationLoss.match, MaskClassificationLoss.mask_losses = match_at, losses_at

    def before_val(self, runner):
        if get_rank():  # one window of an image, where the first process has two
            getattr(runner.model, 'module', runner.model).test_cfg.crop_size = (64, 128)

    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        kept = {
            name: local_bytes(parameter)
            for name, parameter in model.named_parameters()
            if '.blocks.' in name and not parameter.requires_grad
        }
        torch.save(kept, self.out / f'kept_{get_rank()}.pth')
