"""What changes over layers and steps: learning rates, and the probability of masked attention."""

import itertools
import logging
import re
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, PARAM_SCHEDULERS
from torch import nn

from mmseg_eomt.adapters.names import plain_name
from mmseg_eomt.engine.optimizer_steps import OptimizerStepsLR
from mmseg_eomt.engine.runner_state import segmentor_of
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.query_head import QueryHead

PRETRAINED, NEW = 'pretrained', 'new'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EoMTOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give each block of the ViT its own learning rate, and mark the groups of pretrained and of new parts.

    Block i of L trains with ``lr · layer_decay ** (L - 1 - i)``, wherever it is: those in :class:`EoMTHead` are the ViT's
    last. Patch embedding, positions and prefix tokens have the first block's; the final norm, the head's new parts and
    everything else ``lr``. An adapter has that of its layer. Parameters of one learning rate and part share a group, whose
    ``part`` is ``'pretrained'`` (a backbone, and the blocks and norm of EoMTHead) or ``'new'``, for
    :class:`~mmseg_eomt.engine.schedules.TwoWarmupsPolyLR`. Frozen parameters are in no group.

    Args:
        optim_wrapper_cfg: The config's ``optim_wrapper``; its ``optimizer`` needs an ``lr``.
        paramwise_cfg: A dict with

            - ``layer_decay``: Factor from a block to the one before it. Default: 0.8.
            - ``decay_joint_blocks``: Whether the joint blocks decay too; else they have ``lr``, and the blocks before them
              the same learning rates as with it. Default: True.
            - ``custom_keys``: ``{part of a name: dict(lr_mult=…, decay_mult=…)}``: factors for those parameters' learning
              rate and weight decay, as the toolbox's constructors take them: the longest key that is in a name counts.
              ``'lora_'`` is in the names of LoRA's adapters, and ``'blocks'`` in those of all that is trained in the ViT's
              blocks, biases beside adapters too. Default: none.

    Raises:
        ValueError: If ``paramwise_cfg`` has other keys, ``lr`` is missing, or nothing is trainable.

    Source: public implementation ``training/lightning_module.py``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        options: dict[str, Any] = dict(layer_decay=0.8, decay_joint_blocks=True, custom_keys={})
        unknown = set(paramwise_cfg or {}) - set(options)
        if unknown:
            raise ValueError(f'paramwise_cfg of {type(self).__name__} takes {list(options)}, got {sorted(unknown)}.')
        options.update(paramwise_cfg or {})
        strange = {key for custom in options['custom_keys'].values() for key in custom} - {'lr_mult', 'decay_mult'}
        if strange or not options['layer_decay'] > 0:
            raise ValueError(
                f'layer_decay must be above 0, and custom_keys take lr_mult and decay_mult; got '
                f'{options["layer_decay"]} and {sorted(strange)}.'
            )
        super().__init__(optim_wrapper_cfg, options)
        if self.base_lr is None:
            raise ValueError('optim_wrapper.optimizer needs an lr, from which those of the blocks are computed.')

    def add_params(self, params: list[dict], module: nn.Module, **_: object) -> None:
        """Append the groups of all trainable parameters of the model."""
        vits = {name: part for name, part in module.named_modules() if isinstance(part, (EoMTViT, EoMTHead))}
        groups: dict[tuple, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = plain_name(name)
            part, scale = self._place(plain, vits)
            options = dict(part=part, lr=self.base_lr * scale)
            if self.base_wd is not None:
                options['weight_decay'] = self.base_wd
            custom = self.paramwise_cfg['custom_keys']
            for key in sorted(custom, key=len, reverse=True):
                if key in plain:
                    options['lr'] *= custom[key].get('lr_mult', 1.0)
                    if self.base_wd is not None:
                        options['weight_decay'] *= custom[key].get('decay_mult', 1.0)
                    break
            group = groups.setdefault(tuple(options.values()), dict(options, params=[]))
            group['params'].append(parameter)
        if not groups:
            raise ValueError('The model has no trainable parameter.')
        params.extend(groups.values())

    def _place(self, name: str, vits: dict[str, EoMTViT | EoMTHead]) -> tuple[str, float]:
        """Part of a parameter, and its learning rate as a fraction of ``lr``."""
        for prefix, vit in vits.items():
            if not name.startswith(f'{prefix}.'):
                continue
            rest = name.removeprefix(f'{prefix}.')
            if rest.startswith('norm.'):
                return PRETRAINED, 1.0
            block = re.match(r'blocks\.(\d+)\.', rest)
            if not block and (isinstance(vit, EoMTHead) or rest.startswith('rein.')):
                return NEW, 1.0
            index = int(block[1]) + vit.first_block if block else 0
            if isinstance(vit, EoMTHead) and not self.paramwise_cfg['decay_joint_blocks']:
                return PRETRAINED, 1.0
            return PRETRAINED, self.paramwise_cfg['layer_decay'] ** (vit.arch.num_layers - 1 - index)
        return (PRETRAINED if name.startswith('backbone.') else NEW), 1.0


@PARAM_SCHEDULERS.register_module()
class TwoWarmupsPolyLR(OptimizerStepsLR):
    """Warm up the new parts with the pretrained ones frozen, then the pretrained ones; both decay polynomially afterwards.

    Steps are the optimizer's: :class:`OptimizerStepsLR`.

    Args:
        optimizer: The OptimWrapper, built by :class:`~mmseg_eomt.engine.schedules.EoMTOptimWrapperConstructor`.
        warmup_steps: Steps in which the new parts' learning rate rises linearly from 0, and steps after those in which
            the pretrained parts' does. Default: (500, 1000).
        power: Exponent of the decay to 0 at the end of the run. Default: 0.9.
        begin: First iteration. Default: 0.
        end: Iteration at which they reach 0; the Runner puts the end of the run if ``by_epoch=False`` is in the config.
        last_step: Step to go on from, set by the Runner. Default: -1.
        by_epoch: Must be False, and has to be given in the config so that the Runner knows it. Default: False.
        verbose: Whether to print each learning rate. Default: False.

    Raises:
        ValueError: If the run ends before the warm-ups, ``by_epoch`` is True, or the groups have no ``part``.

    Source: public implementation ``training/two_stage_warmup_poly_schedule.py``.
    """

    resumed = (*OptimizerStepsLR.resumed, 'power')

    def __init__(
        self,
        optimizer: OptimWrapper,
        warmup_steps: tuple[int, int] = (500, 1000),
        power: float = 0.9,
        begin: int = 0,
        end: int = int(1e9),
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
    ) -> None:
        self.power = power
        groups = getattr(optimizer, 'optimizer', optimizer).param_groups
        if not all(group.get('part') in (PRETRAINED, NEW) for group in groups):
            raise ValueError("TwoWarmupsPolyLR needs optim_wrapper.constructor='EoMTOptimWrapperConstructor'.")
        super().__init__(optimizer, warmup_steps, begin, end, last_step, by_epoch, verbose)

    def _get_value(self) -> list[float]:
        (first, second), step = self.warmup_steps, self.step_now
        factors = {
            NEW: self._factor(step, first, self.num_steps),
            PRETRAINED: self._factor(step - first, second, self.num_steps - first),
        }
        # the wrapper adds a group without parameters or part, whose learning rate is logged as base_lr
        parts = [group.get('part', NEW) for group in self.optimizer.param_groups]
        return [base * factors[part] for base, part in zip(self.base_values, parts)]

    def _factor(self, step: int, warmup: int, num_steps: int) -> float:
        """Learning rate after ``step`` of ``num_steps`` as a fraction of the highest."""
        if step < 0:
            return 0.0
        if step < warmup:
            return step / warmup
        return (1 - (step - warmup) / (num_steps - warmup)) ** self.power


@HOOKS.register_module()
class MaskAnnealingHook(Hook):
    """Lower the probability of masked attention from 1 to 0, block after block.

    Before each training iteration, joint block i's probability is 1 until ``start_iters[i]``, then
    ``(1 - progress) ** power`` down to 0 at ``end_iters[i]``. It depends on the iteration alone, so a resumed run goes on
    where it stopped. The probabilities are logged as ``mask_prob_{i}``.

    Args:
        start_iters: First iteration of annealing each joint block; a float is a fraction of the run, such as 0.25. Default:
            EoMT's published fractions: with J joint blocks, block i is annealed from (i + 1) / (J + 2) to (i + 2) / (J + 2).
        end_iters: Iteration of each joint block from which on it is never masked, or a fraction as well. Default: see
            ``start_iters``.
        power: Exponent of the polynomial. Default: 0.9.

    Raises:
        ValueError: If only one of the lists is given, they do not fit the joint blocks, or an end is before its start.

    Source: EoMT, section 3.3; public implementation ``training/lightning_module.py`` and its Cityscapes and ADE20K configs.
    """

    priority = 'VERY_HIGH'  # a checkpoint is fitted before an EMA copy takes it

    def __init__(
        self,
        start_iters: Sequence[float] | None = None,
        end_iters: Sequence[float] | None = None,
        power: float = 0.9,
    ) -> None:
        if (start_iters is None) != (end_iters is None):
            raise ValueError('start_iters and end_iters go together: give both or neither.')
        starts, ends = list(start_iters or ()), list(end_iters or ())
        if len(starts) != len(ends) or any(start >= end for start, end in zip(starts, ends)):
            raise ValueError(f'Each end iteration must follow its start, got {starts} and {ends}.')
        beyond = [edge for edge in starts + ends if not isinstance(edge, int) and not 0 <= edge <= 1]
        if beyond:
            raise ValueError(f'A fraction of the run is from 0 to 1, and an iteration a whole number; got {beyond[0]}.')
        self.start_iters = start_iters
        self.end_iters = end_iters
        self.power = power

    def before_train(self, runner: Runner) -> None:
        """Find the head and fix the iterations for this run's length."""
        heads = [module for module in segmentor_of(runner).modules() if isinstance(module, QueryHead)]
        if len(heads) != 1:
            raise ValueError(f'MaskAnnealingHook needs a model with one EoMTHead or PMTHead, found {len(heads)}.')
        self._head = heads[0]
        num_blocks = len(self._head.blocks)
        if self.start_iters is None or self.end_iters is None:
            edges = [int(runner.max_iters * i / (num_blocks + 2)) for i in range(1, num_blocks + 2)]
            spans = list(itertools.pairwise(edges))
        else:
            if len(self.start_iters) != num_blocks:
                raise ValueError(f'{num_blocks} blocks need as many start_iters, got {len(self.start_iters)}.')
            pairs = zip(self.start_iters, self.end_iters)
            spans = [(_iteration(start, runner.max_iters), _iteration(end, runner.max_iters)) for start, end in pairs]
        # a run shorter than its blocks has no room for annealing: one iteration each
        self._spans = [(start, max(end, start + 1)) for start, end in spans]
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


def _iteration(edge: float, max_iters: int) -> int:
    """An iteration, or what a fraction of the run is; published ones are rounded down."""
    return edge if isinstance(edge, int) else int(max_iters * edge + 1e-6)
