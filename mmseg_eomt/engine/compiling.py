"""What ``compile`` of a config compiles of an EoMT."""

import types
from collections.abc import Callable
from typing import Any

import torch
from mmengine.runner import Runner
from torch import nn

from mmseg_eomt.engine.checks import segmentor_of
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.patches import patch


def compile_networks() -> None:
    """Let a Runner compile an EoMT's network in place of its whole training step; a second call changes nothing.

    A step does more than its network. The matching waits for the CPU and gives another number of masks for each batch, and
    what the toolbox does around it depends on the names of files and on numbers of the log: PyTorch would compile these
    parts again at nearly every iteration, and give them up at the eighth time. Backbone and head take and give tensors of
    the same shapes all through a run, and are compiled once.
    """
    patch(Runner, '_maybe_compile', _network_only)


def _network_only(compile_step: Callable) -> Callable:
    def maybe_compile(self: Runner, target: str) -> None:
        options, model = self.cfg.get('compile'), segmentor_of(self)
        head = getattr(model, 'decode_head', None)
        if target != 'train_step' or not isinstance(head, EoMTHead) or not isinstance(options, (bool, dict)):
            compile_step(self, target)
        elif options is not False:
            for part in (model.backbone, getattr(model, 'neck', None), head):
                if part is not None:
                    _compile_training(part, {} if options is True else options)
            self.logger.info('Backbone and decode head are compiled in the first iteration, which takes a while.')

    return maybe_compile


def _compile_training(module: nn.Module, options: dict[str, Any]) -> None:
    """Compile a module for training; the run evaluates with it as it is, at whatever sizes its images have."""
    given = module.forward
    # of the class and not of this object, so that a copy of the module computes with its own weights
    plain = getattr(given, '__func__', None) or (lambda _, *args, **kwargs: given(*args, **kwargs))
    compiled = torch.compile(plain, **options)

    def forward(self: nn.Module, *args, **kwargs) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    module.forward = types.MethodType(forward, module)
