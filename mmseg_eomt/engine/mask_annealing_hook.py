"""The schedule of EoMT's masked attention."""

import itertools
import logging
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmseg_eomt.engine.checks import prepare_run, segmentor_of
from mmseg_eomt.models.eomt_head import EoMTHead


@HOOKS.register_module()
class MaskAnnealingHook(Hook):
    """Lower the probability of masked attention from 1 to 0, block after block.

    Before each training iteration, joint block i's probability is 1 until ``start_iters[i]``, then
    ``(1 - progress) ** power`` down to 0 at ``end_iters[i]``. It depends on the iteration alone, so a resumed run goes on
    where it stopped. The probabilities are logged as ``mask_prob_{i}``.

    Args:
        start_iters: First iteration of each joint block's descent. Default: the published fractions of the run: with J joint
            blocks, block i descends from (i + 1) / (J + 2) to (i + 2) / (J + 2) of it.
        end_iters: Iteration of each joint block from which on it is never masked. Default: see ``start_iters``.
        power: Exponent of the polynomial. Default: 0.9.

    Raises:
        ValueError: If only one of the lists is given, they do not fit the joint blocks, or an end is before its start.

    Source: EoMT, section 3.3; public implementation ``training/lightning_module.py`` and its Cityscapes and ADE20K configs.
    """

    priority = 'VERY_HIGH'  # a checkpoint is fitted before an EMA copy takes it

    def __init__(
        self,
        start_iters: Sequence[int] | None = None,
        end_iters: Sequence[int] | None = None,
        power: float = 0.9,
    ) -> None:
        if (start_iters is None) != (end_iters is None):
            raise ValueError('start_iters and end_iters go together: give both or neither.')
        if start_iters is not None and (
            len(start_iters) != len(end_iters) or any(s >= e for s, e in zip(start_iters, end_iters))
        ):
            raise ValueError(f'Each end iteration must follow its start, got {list(start_iters)} and {list(end_iters)}.')
        self.start_iters = start_iters
        self.end_iters = end_iters
        self.power = power

    def before_run(self, runner: Runner) -> None:
        """Check the model and its data."""
        prepare_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Find the head and fix the iterations for this run's length."""
        heads = [module for module in segmentor_of(runner).modules() if isinstance(module, EoMTHead)]
        if len(heads) != 1:
            raise ValueError(f'MaskAnnealingHook needs a model with one EoMTHead, found {len(heads)}.')
        self._head = heads[0]
        num_blocks = self._head.num_joint_blocks
        if self.start_iters is None:
            edges = [int(runner.max_iters * i / (num_blocks + 2)) for i in range(1, num_blocks + 2)]
            # a run shorter than its joint blocks has no room for a descent: one iteration each
            self._spans = [(start, max(end, start + 1)) for start, end in itertools.pairwise(edges)]
        else:
            if len(self.start_iters) != num_blocks:
                raise ValueError(f'{num_blocks} joint blocks need as many start_iters, got {len(self.start_iters)}.')
            self._spans = list(zip(self.start_iters, self.end_iters))
        self._head.set_mask_probs(self.mask_probs(runner.iter), first=True)
        last_end = max(end for _, end in self._spans)
        if last_end > runner.max_iters:
            print_log(
                f'The run ends at iteration {runner.max_iters} with masked attention still on (end_iters '
                f'{last_end}); evaluation uses none. Set start_iters and end_iters anew, or leave both out.',
                logger='current',
                level=logging.WARNING,
            )

    def mask_probs(self, iteration: int) -> list[float]:
        """Each joint block's probability at an iteration, counted from 0."""
        probs = []
        for start, end in self._spans:
            progress = min(max((iteration - start) / (end - start), 0.0), 1.0)
            probs.append((1.0 - progress) ** self.power)
        return probs

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set and log the probabilities of this iteration."""
        probs = self.mask_probs(runner.iter)
        if tuple(probs) != self._head.mask_probs:
            self._head.set_mask_probs(probs)
        for i, prob in enumerate(probs):
            runner.message_hub.update_scalar(f'train/mask_prob_{i}', prob)
