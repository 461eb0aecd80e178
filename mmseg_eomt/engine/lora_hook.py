"""Where a Runner adapts its model."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmseg_eomt.adapters.base_weights import without_trained
from mmseg_eomt.adapters.blocks import block_range, keep_to_blocks
from mmseg_eomt.adapters.checkpoint import fill_from_model, left_out, note, note_of
from mmseg_eomt.adapters.config import lora_config, peft_config
from mmseg_eomt.adapters.inject import fully_trained_modules, inject
from mmseg_eomt.adapters.names import adapter_names, plain_name
from mmseg_eomt.adapters.precision import PRECISIONS, reduce_precision
from mmseg_eomt.adapters.summary import ADAM_STATES, summarise
from mmseg_eomt.engine.adapter_hooks import FrozenNormsHook, MergeForEvaluationHook, SlimCheckpointHook, UnusedAdaptersHook
from mmseg_eomt.engine.data_starts import look_at_data
from mmseg_eomt.engine.lora_base import bring_base, config_of_run, read_start
from mmseg_eomt.engine.runner_state import is_resuming, is_training, segmentor_of
from mmseg_eomt.engine.sharding import check_shardable, hide_shards_once, shard_base
from mmseg_eomt.whole import whole_file

ATTENTION_LAYERS = ('qkv', 'proj', 'q_proj', 'v_proj')
TABLE = 'adapters.txt'  # in the work directory


@HOOKS.register_module()
class LoRAHook(Hook):
    """Put LoRA adapters (PEFT) into the model once its pretrained weights are in, and freeze the rest.

    A Runner wraps the model and builds optimizer and schedulers before it loads any weights. So in ``before_run``, ahead of
    the other hooks, this one brings the base weights in, injects the adapters, wraps the model again and rebuilds optimizer
    and schedulers from the config: they, the checkpoints, an EMA copy and evaluation all see the adapted model. When testing
    it adapts the model as the checkpoint needs it, not at all for a plain or merged one, and merges the adapters once
    loaded. It prints what is trainable and what is frozen, and writes the same in full to ``adapters.txt`` in the work
    directory. What else a run with adapters needs is done by the hooks of :mod:`~mmseg_eomt.engine.adapter_hooks`, which it
    registers.

    Args:
        r: LoRA's rank. Default: 16.
        lora_alpha: LoRA's scale, over ``r``. Default: 32.
        lora_dropout: Dropout in front of LoRA's adapters. Default: 0.05.
        target_modules: Last parts of the names of the layers to adapt; an empty list adapts none. PyTorch's own attention
            has no layer of queries, keys and values, but the weight ``'in_proj_weight'``, and no dropout in front of it.
            Default: the attention layers of common ViTs.
        exclude_modules: Last parts of names to exclude. Default: the patch embedding, whose layer is called ``proj`` too.
        blocks: First and last block to adapt of an :class:`EoMTViT`, both included, counted from 0 over backbone and head
            alike; -1 is the last. ``(8, -1)`` adapts the upper two thirds of a ViT-L. Default: None, all blocks.
        trainable_modules: Modules that are trained beside the adapters. Default: the parts of :class:`EoMTHead` that no
            checkpoint of a ViT holds; the projection only exists on a backbone of another width.
        peft: Further fields for PEFT's own config class, which ``type`` names; by default ``LoraConfig``, to which
            ``r``, ``lora_alpha`` and ``lora_dropout`` belong. Default: none.
        save: ``'trainable'`` keeps the weights that can be found again, through ``init_cfg`` or ``load_from``, out of the
            checkpoints, and notes their fingerprints. ``'full'`` keeps all in. Default: ``'trainable'``.
        save_adapter: Whether each checkpoint is also written in PEFT's format, to ``adapters/iter_<n>`` in the work
            directory. Default: False.
        split_qkv: Whether queries, keys and values of a fused ``qkv`` layer have an adapter of rank ``r`` each, as in SoMA
            and Rein, in place of one that they share. Default: False.
        base_precision: ``'fp32'``, ``'bf16'``, or ``'8bit'`` and ``'4bit'`` with bitsandbytes: how the frozen linear layers
            are kept in memory. Default: ``'fp32'``.
        shard_base: Whether each process of a run keeps a part of the frozen weights of the blocks alone, and gathers a block
            at a time (:mod:`~mmseg_eomt.engine.sharding`). One process keeps all. Default: False.

    Raises:
        ImportError: If PEFT is missing and adapters are needed.
        ValueError: If a number is out of range or given twice, a name matches nothing, the model does not use an adapted
            layer, other hooks do not go with this one, or a checkpoint was trained with other adapters or on another base.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        r: int | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float | None = None,
        target_modules: Sequence[str] = ATTENTION_LAYERS,
        exclude_modules: Sequence[str] = ('patch_embed.proj',),
        blocks: Sequence[int] | None = None,
        trainable_modules: Sequence[str] = (
            'decode_head.input_projection',
            'decode_head.query_embed',
            'decode_head.class_head',
            'decode_head.mask_head',
            'decode_head.upscale',
        ),
        peft: dict | None = None,
        save: str = 'trainable',
        save_adapter: bool = False,
        split_qkv: bool = False,
        base_precision: str = 'fp32',
        shard_base: bool = False,
    ) -> None:
        if save not in ('trainable', 'full'):
            raise ValueError(f"save is 'trainable' or 'full', got {save!r}.")
        if base_precision not in PRECISIONS:
            raise ValueError(f'base_precision is one of {PRECISIONS}, got {base_precision!r}.')
        if isinstance(trainable_modules, str):
            raise ValueError(f'trainable_modules is a list of names, got {trainable_modules!r}.')
        self.make_config = config_maker(r, lora_alpha, lora_dropout, target_modules, exclude_modules, peft, split_qkv)
        targets = (peft or {}).get('target_modules', target_modules)
        self._warn_unmatched = not isinstance(targets, str) and tuple(targets) != ATTENTION_LAYERS
        self.blocks = blocks
        self.trainable_modules = tuple(trainable_modules)
        self.save = save
        self.save_adapter = save_adapter
        self.base_precision = base_precision
        self.shard_base = shard_base
        self._adapted: nn.Module | None = None
        self._trained = False

    def before_run(self, runner: Runner) -> None:
        """Adapt the runner's model; once, also where one Runner trains and then tests."""
        check_runner(runner, self)
        model, training = segmentor_of(runner), is_training(runner)
        if model is self._adapted:
            if training and not self._trained:
                raise ValueError('This Runner has evaluated before any training: train in a new one.')
            return
        self._adapted, self._trained = model, training
        start = read_start(runner)
        if start is not None and start.note is None and not training:
            evaluate_plain(runner, start.merged)
            return
        config = config_of_run(runner, self.config_for(model), start)
        shards = self.shard_base and runner.world_size > 1
        if shards:
            check_shardable(runner, config, self.save, self.base_precision)
        fully_trained = fully_trained_modules(model, config, self.trainable_modules)
        base = bring_base(runner, config, start, fully_trained, self.base_precision)
        if self.base_precision != 'fp32':
            reduce_precision(model, self.base_precision, fully_trained)
        fresh = start is None or start.note is None
        if fresh:
            look_at_data(runner, config, fully_trained)
        matches = inject(model, config, self.trainable_modules, fresh)
        trained = {plain_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        base = without_trained(base, trained)
        if shards:
            shard_base(runner, left_out(model, base))
        wrap_again(runner)
        adapters = config if adapter_names(model) else None  # modules may be trained without any
        noted = functools.partial(note, adapters, self.trainable_modules, base, base_precision=self.base_precision)
        slim = SlimCheckpointHook(base, noted, self.save, self.save_adapter)
        if training:
            self._begin_training(runner, slim, shards)
        elif self.base_precision == 'fp32' and not shards:
            runner.register_hook(MergeForEvaluationHook(), priority=self.priority)
        report(runner, matches, slim.dropped(model), self._warn_unmatched)
        self._report_blocks(runner, model)

    def _begin_training(self, runner: Runner, slim: SlimCheckpointHook, shards: bool) -> None:
        model = segmentor_of(runner)
        model.init_weights = functools.partial(hide_shards_once, model) if shards else _already_done
        rebuild_optimizer(runner)
        slim.check(runner)
        runner.register_hook(slim)
        for hook in (FrozenNormsHook(), UnusedAdaptersHook()):
            runner.register_hook(hook, priority=self.priority)

    def config_for(self, model: nn.Module) -> Any:
        """PEFT's config for a model that is not adapted yet.

        Raises:
            ImportError: If PEFT is missing.
            ValueError: If a field is wrong, or ``blocks`` are not in the model.
        """
        config = self.make_config()
        return config if self.blocks is None else keep_to_blocks(model, config, self.blocks)

    def _report_blocks(self, runner: Runner, model: nn.Module) -> None:
        if self.blocks is None:
            return
        span, count = block_range(model, self.blocks)
        if not adapter_names(model):
            runner.logger.warning(f'blocks={self.blocks} has no effect: without target_modules nothing is adapted.')
        else:
            runner.logger.info(f'Of blocks 0 to {count - 1} of the ViT, {span[0]} to {span[-1]} are adapted.')

    def before_train(self, runner: Runner) -> None:
        """Give the model its own ``init_weights`` back: the Runner's call, which must not draw adapters again, is over."""
        segmentor_of(runner).__dict__.pop('init_weights', None)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in what the checkpoint does not hold, and make sure that it fits.

        Raises:
            RuntimeError: If its adapters are not those of the model.
            ValueError: If weights are missing.
        """
        if note_of(checkpoint) is None or 'state_dict' not in checkpoint:
            return
        model, new_run = segmentor_of(runner), is_training(runner) and not is_resuming(runner)
        checkpoint['state_dict'] = fill_from_model(model, checkpoint['state_dict'], new_run=new_run)
        if 'ema_state_dict' in checkpoint:
            checkpoint['ema_state_dict'] = fill_from_model(model, checkpoint['ema_state_dict'], 'module.', new_run)


def check_runner(runner: Runner, own: LoRAHook) -> None:
    """Make sure that a Runner's model can be adapted, and that no hook before ours has taken it as it was.

    Raises:
        ValueError: If it cannot, with what to change.
    """
    if isinstance(runner, FlexibleRunner):
        raise ValueError('LoRAHook works with the default Runner, not with FlexibleRunner: drop runner_type.')
    if is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDataParallel):
        raise ValueError(
            f'LoRAHook works with DistributedDataParallel, not with {type(runner.model).__name__}, which shards the weights '
            f'before adapters can be put in: drop model_wrapper_cfg.'
        )
    for hook in runner.hooks:
        if isinstance(hook, LoRAHook) and hook is not own:
            raise ValueError('custom_hooks has more than one LoRAHook: name all layers to adapt in one.')
    if any(isinstance(hook, EMAHook) for hook in runner.hooks[: runner.hooks.index(own)]):
        raise ValueError(
            'EMAHook comes before LoRAHook, and its copy of the model would have no adapters: drop the priority of '
            'LoRAHook, and list it first.'
        )
    if is_training(runner) and not runner.cfg.get('optim_wrapper'):
        raise ValueError('LoRAHook rebuilds the optimizer from the config, which has no optim_wrapper: use Runner.from_cfg.')


def evaluate_plain(runner: Runner, merged: bool) -> None:
    """Leave a model as it is whose checkpoint has no adapters."""
    if not merged:
        runner.logger.warning('The checkpoint has no adapters: what is evaluated is the model without LoRA.')
    wrap_again(runner)


def wrap_again(runner: Runner) -> None:
    """Let DDP see the adapters: it takes the parameters when it is made."""
    if runner.distributed:
        if is_model_wrapper(runner.model):  # not where the base was to be sharded first
            runner.model = runner.model.module  # lets go of the old wrapper before the new one takes the parameters
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model)


def rebuild_optimizer(runner: Runner) -> None:
    """Build optimizer and schedulers from the config as ``Runner.train`` has: those were of the model before."""
    runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    runner.param_schedulers = runner.cfg.get('param_scheduler')  # learning rates are scaled before schedulers are built
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)


def report(runner: Runner, matches: dict[str, list[str]], dropped: set[str], warn_unmatched: bool) -> None:
    """Print what is adapted, trainable and saved, and write it in full to a file in the work directory."""
    model = segmentor_of(runner)
    optimizer = type(runner.optim_wrapper.optimizer).__name__ if is_training(runner) else 'AdamW'
    states = ADAM_STATES if optimizer.startswith(('Adam', 'NAdam', 'RAdam')) else 1
    runner.logger.info(summarise(model, matches, dropped, states))
    unmatched = [target for target, names in matches.items() if not names]
    if unmatched and warn_unmatched:
        runner.logger.warning(f'target_modules {unmatched} matched no layer; the other targets are adapted.')
    if is_training(runner) and is_main_process():
        with whole_file(Path(runner.work_dir) / TABLE) as table:
            table.write_text(summarise(model, matches, dropped, states, full=True) + '\n', encoding='utf-8')


def _already_done() -> None:
    pass


def config_maker(
    r: int | None,
    lora_alpha: float | None,
    lora_dropout: float | None,
    target_modules: Sequence[str],
    exclude_modules: Sequence[str],
    peft: dict[str, Any] | None,
    split_qkv: bool = False,
) -> Callable[[], Any]:
    """What makes the config, which needs PEFT, once adapters are needed; see :class:`LoRAHook` for the arguments.

    Raises:
        ValueError: If an argument is of another method, is given twice, or is a name in place of a list.
    """
    targets = dict(target_modules=target_modules, exclude_modules=exclude_modules)
    for name, names in targets.items():
        if isinstance(names, str):
            raise ValueError(f'{name} is a list of names, got {names!r}.')
    fields = {**(peft or {}), **({'split_qkv': True} if split_qkv else {})}
    config_class = fields.pop('type', 'LoraConfig')
    numbers = dict(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    given = {name: value for name, value in numbers.items() if value is not None}
    chosen: dict[str, Any] = {} if tuple(target_modules) == ATTENTION_LAYERS else dict(target_modules=target_modules)
    for name, value in {**given, **chosen}.items():
        if name in fields:
            raise ValueError(f'{name}={value} and peft=dict({name}={fields[name]}): give one of the two.')
    if isinstance(fields.get('target_modules'), str):  # for whole names
        fields['expression'] = fields.pop('target_modules')
    if config_class == 'LoraConfig':
        defaults = dict(r=16, lora_alpha=32, lora_dropout=0.05)
        return functools.partial(lora_config, **{**defaults, **targets, **given, **fields})
    if given:
        raise ValueError(f"{list(given)} are LoRA's numbers: put those of {config_class} into peft.")
    return functools.partial(peft_config, config_class, **{**targets, **fields})
