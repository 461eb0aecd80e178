"""Where a Runner adapts its model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mmseg_eomt.adapters.base_weights import describe_base, restore_base, watch_loading, without_trained
from mmseg_eomt.adapters.checkpoint import (
    KEY,
    UNKNOWN_BASE,
    brought_by,
    check_note,
    completed,
    left_out,
    note,
    note_of,
    weights_of,
)
from mmseg_eomt.adapters.config import changes_base
from mmseg_eomt.adapters.inject import inject, modules_trained_whole
from mmseg_eomt.adapters.merge import merge
from mmseg_eomt.adapters.names import adapter_names, plain_name, tuner_layers, within
from mmseg_eomt.adapters.peft_folder import check_exportable, save_adapter
from mmseg_eomt.adapters.precision import PRECISIONS, quantized_layers, reduce_precision
from mmseg_eomt.adapters.summary import ADAM_STATES, summarise
from mmseg_eomt.engine.checks import fit_run_checkpoint, is_training, prepare_run, segmentor_of
from mmseg_eomt.engine.lora_arguments import ATTENTION_LAYERS, config_maker
from mmseg_eomt.engine.resume import check_resumable
from mmseg_eomt.engine.unused_adapters import AdapterUse
from mmseg_eomt.weights.checkpoint import ARCH_NOTE
from mmseg_eomt.weights.fit import load_fitted
from mmseg_eomt.whole import whole_file

TABLE = 'adapters.txt'  # in the work directory


@HOOKS.register_module()
class LoRAHook(Hook):
    """Put LoRA adapters (PEFT) into the model once its pretrained weights are in, and freeze the rest.

    A Runner wraps the model and builds optimizer and schedulers before it loads any weights. So in ``before_run``, ahead of
    the other hooks, this one brings the base weights in, injects the adapters, wraps the model anew and rebuilds optimizer
    and schedulers from the config: they, the checkpoints, an EMA copy and evaluation all see the adapted model. When testing
    it adapts the model as the checkpoint needs it, not at all for a plain or merged one, and merges the adapters once
    loaded. It prints what trains and what is frozen, writes the same in full to ``adapters.txt`` in the work directory, and
    keeps the statistics of frozen batch norms as they are.

    Args:
        r: LoRA's rank. Default: 16.
        lora_alpha: LoRA's scale, over ``r``. Default: 32.
        lora_dropout: Dropout in front of LoRA's adapters. Default: 0.05.
        target_modules: Last parts of the names of the layers to adapt; an empty list adapts none. PyTorch's own attention
            has no layer of queries, keys and values, but the weight ``'in_proj_weight'``, and no dropout in front of it.
            Default: the attention layers of common ViTs.
        exclude_modules: Last parts of names to leave out. Default: the patch embedding, whose layer is called ``proj`` too.
        trainable_modules: Modules that are trained beside the adapters. Default: the parts of :class:`EoMTHead` that no
            checkpoint of a ViT holds; the projection only exists on a backbone of another width.
        peft: Further fields for PEFT's own config class, which ``type`` names; ``LoraConfig`` if it is left out, to which
            ``r``, ``lora_alpha`` and ``lora_dropout`` belong. Default: none.
        save: ``'trainable'`` keeps the weights that can be found again, through ``init_cfg`` or ``load_from``, out of the
            checkpoints, and notes their fingerprints. ``'full'`` keeps all in. Default: ``'trainable'``.
        save_adapter: Whether each checkpoint is also written in PEFT's format, to ``adapters/iter_<n>`` in the work
            directory. Default: False.
        base_precision: ``'fp32'``, ``'bf16'``, or ``'8bit'`` and ``'4bit'`` with bitsandbytes: how the frozen linear layers
            are kept in memory. Default: ``'fp32'``.

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
        base_precision: str = 'fp32',
    ) -> None:
        if save not in ('trainable', 'full'):
            raise ValueError(f"save is 'trainable' or 'full', got {save!r}.")
        if base_precision not in PRECISIONS:
            raise ValueError(f'base_precision is one of {PRECISIONS}, got {base_precision!r}.')
        if isinstance(trainable_modules, str):
            raise ValueError(f'trainable_modules is a list of names, got {trainable_modules!r}.')
        self.make_config = config_maker(r, lora_alpha, lora_dropout, target_modules, exclude_modules, peft)
        targets = (peft or {}).get('target_modules', target_modules)
        self._warn_unmatched = not isinstance(targets, str) and tuple(targets) != ATTENTION_LAYERS
        self.trainable_modules = tuple(trainable_modules)
        self.save = save
        self.save_adapter = save_adapter
        self.base_precision = base_precision
        self.config: Any = None
        self.base: dict[str, Any] = UNKNOWN_BASE
        self._adapted: nn.Module | None = None
        self._trained = False
        self._frozen_norms: list[nn.Module] = []
        self._use = AdapterUse()

    def before_run(self, runner: Runner) -> None:
        """Adapt the runner's model; once, also where one Runner trains and then tests."""
        if isinstance(runner, FlexibleRunner):
            raise ValueError('LoRAHook works with the default Runner, not with FlexibleRunner: drop runner_type.')
        wrapped = is_model_wrapper(runner.model)
        if wrapped and not isinstance(runner.model, DistributedDataParallel):
            raise ValueError(
                f'LoRAHook works with DistributedDataParallel, not with {type(runner.model).__name__}, which cuts up the '
                f'weights before adapters can be put in: drop model_wrapper_cfg.'
            )
        outer = runner.model.module if wrapped else runner.model
        model, training = segmentor_of(runner), is_training(runner)
        if model is self._adapted:
            if training and not self._trained:
                raise ValueError('This Runner has evaluated before any training: train in a new one.')
            return
        self._check_hooks(runner)
        self._adapted, self._trained = model, training
        prepare_run(runner)
        checkpoint = self._read_checkpoint(runner)
        if checkpoint is not None and note_of(checkpoint) is None and not training:  # plain, or merged
            if not checkpoint.get('meta', {}).get('merged'):
                runner.logger.warning('The checkpoint has no adapters: what is evaluated is the model without LoRA.')
            return
        self.config = self.make_config()
        whole = modules_trained_whole(model, self.config, self.trainable_modules)
        self._bring_base(runner, model, checkpoint, whole)
        matches = self._inject(model, whole)
        if wrapped:
            runner.model = outer  # lets go of the old wrapper before the new one takes the parameters
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), outer)
        if training:
            model.init_weights = _already_done
            self._rebuild_optimizer(runner)
            self._prepare_saving(runner, model)
        self._report(runner, model, matches)

    def _check_hooks(self, runner: Runner) -> None:
        """Those before this hook have taken the model as it was."""
        for hook in runner.hooks:
            if isinstance(hook, LoRAHook) and hook is not self:
                raise ValueError('custom_hooks has more than one LoRAHook: name all layers to adapt in one.')
        for hook in runner.hooks[: runner.hooks.index(self)]:
            if isinstance(hook, EMAHook):
                raise ValueError(
                    'EMAHook comes before LoRAHook, and its copy of the model would have no adapters: drop the priority of '
                    'LoRAHook, and list it first.'
                )

    def _read_checkpoint(self, runner: Runner) -> dict | None:
        if not runner._load_from:
            return None
        checkpoint = CheckpointLoader.load_checkpoint(runner._load_from, map_location='cpu', logger=runner.logger)
        check_resumable(runner, checkpoint)
        return checkpoint

    def _bring_base(self, runner: Runner, model: nn.Module, checkpoint: dict | None, whole: list[str]) -> None:
        """The weights below the adapters, before these are put in: some methods compute their first values from them."""
        given, training = note_of(checkpoint), is_training(runner)
        if given is not None:
            self._check_given(runner, given)
        elif runner._resume and checkpoint is not None and self.config.target_modules:
            raise ValueError('The checkpoint to resume from has no adapters: to start from it, leave out --resume.')
        if training and not runner.cfg.get('optim_wrapper'):
            raise ValueError(
                'LoRAHook rebuilds the optimizer from the config, which has no optim_wrapper: use Runner.from_cfg.'
            )
        if given is not None and not given['complete']:
            brought = brought_by(weights_of(checkpoint))
            if training:
                brought |= {name for name, _ in model.named_parameters() if within(name, whole)}
            restore_base(model, self.base, brought, runner._load_from)
            return
        if not training or (runner._resume and checkpoint is not None):
            return  # the checkpoint brings all of it
        with watch_loading(model) as loaded:
            model.init_weights()
            if checkpoint is not None and given is None:
                self._load_plain(runner, model, checkpoint)
        if given is None:
            self.base = describe_base(model, loaded, runner._load_from)
            frozen = [name for name, _ in model.named_parameters() if not within(name, whole)]
            absent = [name for name in frozen if name not in loaded]
            if absent:
                runner.logger.warning(
                    f'LoRAHook freezes random weights: {len(absent)} of {len(frozen)} frozen parameters, such as '
                    f'{absent[0]}, came from no file. Name one in init_cfg or load_from, or set trainable_modules.'
                )

    def _check_given(self, runner: Runner, given: dict[str, Any]) -> None:
        """Compare a checkpoint's note with what the hook is set to, and take over its base."""
        check_note(given, self.config, runner._load_from)
        noted = given.get('base_precision', 'fp32')
        if runner._resume and is_training(runner) and noted != self.base_precision:
            raise ValueError(
                f'The run to resume had base_precision={noted!r}, here it is {self.base_precision!r}: set the same.'
            )
        self.base = given['base']
        if given['complete'] and not runner._resume:  # a new run finds the base where it has found it itself
            changed = changes_base(given['peft'] or {})
            self.base = UNKNOWN_BASE if changed else dict(self.base, init_cfg={}, load_from=runner._load_from)

    @staticmethod
    def _load_plain(runner: Runner, model: nn.Module, checkpoint: dict) -> None:
        """What the Runner would do after ``before_run``; an EMA copy is made of the loaded model later."""
        fit_run_checkpoint(runner, checkpoint)
        for hook in runner.hooks:
            if not isinstance(hook, EMAHook):
                hook.after_load_checkpoint(runner, checkpoint)
        weights = {name.removeprefix('module.'): value for name, value in weights_of(checkpoint).items()}
        load_fitted(model, weights)
        runner._has_loaded = True
        runner.logger.info(f'Load checkpoint from {runner._load_from}')

    def _inject(self, model: nn.Module, whole: list[str]) -> dict[str, list[str]]:
        if self.base_precision != 'fp32':
            reduce_precision(model, self.base_precision, whole)
        matches = inject(model, self.config, self.trainable_modules)
        trained = {plain_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.base = without_trained(self.base, trained)
        return matches

    def _prepare_saving(self, runner: Runner, model: nn.Module) -> None:
        lost = [name for name in quantized_layers(model) if f'{plain_name(name)}.weight' not in self.base['fingerprints']]
        if lost or (quantized_layers(model) and self.save == 'full'):
            raise ValueError(
                "A base of 8 or 4 bits is not saved: it takes save='trainable', and weights from init_cfg or load_from."
            )
        if self.save_adapter:
            check_exportable(model, self.base)  # an error now rather than at the first checkpoint
        runner.register_hook(_SaveTrained(self), priority='LOWEST')  # after an EMA hook has put its weights in
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.published_keys and 'meta' not in hook.published_keys:
                raise ValueError(
                    f"CheckpointHook's published_keys={list(hook.published_keys)} lacks 'meta', where adapters and base "
                    f'are noted: the published file could not be used. Add it.'
                )

    def _report(self, runner: Runner, model: nn.Module, matches: dict[str, list[str]]) -> None:
        optimizer = type(runner.optim_wrapper.optimizer).__name__ if is_training(runner) else 'AdamW'
        states = ADAM_STATES if optimizer.startswith(('Adam', 'NAdam', 'RAdam')) else 1
        dropped = left_out(model, self.base) if self.save == 'trainable' else set()
        runner.logger.info(summarise(model, matches, dropped, states))
        unmatched = [target for target, names in matches.items() if not names]
        if unmatched and self._warn_unmatched:
            runner.logger.warning(f'target_modules {unmatched} matched no layer; the other targets are adapted.')
        if is_training(runner) and is_main_process():
            with whole_file(Path(runner.work_dir) / TABLE) as table:
                table.write_text(summarise(model, matches, dropped, states, full=True) + '\n', encoding='utf-8')

    def before_train(self, runner: Runner) -> None:
        """Give the model its own ``init_weights`` back: the Runner's call, which must not draw adapters anew, is over."""
        model = segmentor_of(runner)
        model.__dict__.pop('init_weights', None)
        self._frozen_norms = [  # those of the wrapped model: wrapping replaces norms that are synchronised
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        ]
        self._use.watch(model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Keep the statistics of frozen batch norms."""
        for norm in self._frozen_norms:
            norm.eval()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Look once whether every adapter is used: a model may read a layer's weight and not call the layer.

        Raises:
            ValueError: If the loss does not depend on some, with the names of their layers.
        """
        self._use.check()

    def before_val(self, runner: Runner) -> None:
        """See :meth:`_merge`."""
        self._merge(runner)

    def before_test(self, runner: Runner) -> None:
        """See :meth:`_merge`."""
        self._merge(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in what the checkpoint leaves out, and make sure that it fits.

        Raises:
            RuntimeError: If its adapters are not those of the model.
            ValueError: If weights are missing.
        """
        given, model = note_of(checkpoint), segmentor_of(runner)
        if given is not None and 'state_dict' in checkpoint:
            new_run = is_training(runner) and not runner._resume
            checkpoint['state_dict'] = completed(model, checkpoint['state_dict'], new_run=new_run)
            if 'ema_state_dict' in checkpoint:
                checkpoint['ema_state_dict'] = completed(model, checkpoint['ema_state_dict'], 'module.', new_run)

    def _merge(self, runner: Runner) -> None:
        """Put the adapters into the weights where nothing is trained: beside them they would take time."""
        model = segmentor_of(runner)
        averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)  # it exchanges parameters with a copy's
        if self._trained or averaged or self.base_precision != 'fp32' or not tuner_layers(model):
            return
        try:
            merge(model)
        except ValueError as error:
            runner.logger.info(f'The adapters stay beside the weights: {error}')

    @staticmethod
    def _rebuild_optimizer(runner: Runner) -> None:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
        schedulers = runner.cfg.get('param_scheduler')
        runner.param_schedulers = schedulers  # the Runner scales rates only before schedulers are built
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(schedulers)


class _SaveTrained(Hook):
    """Make a checkpoint small and say in it what it holds; the last hook before it is written."""

    def __init__(self, owner: LoRAHook) -> None:
        self.owner = owner

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        owner, model = self.owner, segmentor_of(runner)
        dropped = left_out(model, owner.base) if owner.save == 'trainable' else set()
        meta = checkpoint['meta']
        if dropped or adapter_names(model):  # all of a model without adapters is a plain checkpoint
            config, complete = owner.config if adapter_names(model) else None, not dropped
            meta[KEY] = note(config, owner.trainable_modules, owner.base, complete, owner.base_precision)
        if owner.save_adapter:
            folder = Path(runner.work_dir) / 'adapters' / f'iter_{meta["iter"]}'
            known = {name: meta[name] for name in ('iter', 'epoch', 'dataset_meta', ARCH_NOTE) if name in meta}
            save_adapter(model, folder, checkpoint['state_dict'], owner.base, known)
        for key, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
            for name in dropped if key in checkpoint else ():
                checkpoint[key].pop(f'{prefix}{name}', None)


def _already_done() -> None:
    pass
