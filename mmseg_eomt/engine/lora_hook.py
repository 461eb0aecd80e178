"""Where a Runner adapts its model."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import FlexibleRunner, Runner
from mmseg.registry import HOOKS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_eomt.adapters.guard import is_adapter
from mmseg_eomt.adapters.inject import inject, lora_config
from mmseg_eomt.adapters.summary import summarise
from mmseg_eomt.engine.checks import check_weights, is_training, prepare_run, segmentor_of, weights_of
from mmseg_eomt.engine.mask_annealing_hook import MaskAnnealingHook
from mmseg_eomt.models.eomt_head import EoMTHead

ATTENTION_LAYERS = ('qkv', 'proj', 'q_proj', 'v_proj')


@HOOKS.register_module()
class LoRAHook(Hook):
    """Put LoRA adapters (PEFT) into the model once its pretrained weights are in, and freeze the rest.

    A Runner wraps the model and builds optimizer and schedulers before it loads any weights. So in ``before_run``, ahead of
    the other hooks, this one initialises the weights, injects the adapters, wraps the model anew and rebuilds optimizer and
    schedulers from the config: they, the checkpoints, an EMA copy and evaluation all see the adapted model. When testing it
    injects only, and the checkpoint's adapters find their place. It prints what trains and what is frozen, and keeps the
    statistics of frozen batch norms as they are.

    Args:
        r: Rank. Default: 16.
        lora_alpha: Scale, over ``r``. Default: 32.
        lora_dropout: Dropout in front of an adapter. Default: 0.05.
        target_modules: Last parts of the names of the layers to adapt; an empty list adapts none. Default: the attention
            layers of common ViTs.
        exclude_modules: Last parts of names to leave out. Default: the patch embedding, whose layer is called ``proj`` too.
        trainable_modules: Modules that are trained beside the adapters. Default: the parts of :class:`EoMTHead` that no
            checkpoint of a ViT holds; the projection only exists on a backbone of another width.

    Raises:
        ImportError: If PEFT is missing.
        ValueError: If a number is out of range, a name matches nothing, or a checkpoint was trained with other numbers.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        r: int = 16,
        lora_alpha: float = 32,
        lora_dropout: float = 0.05,
        target_modules: Sequence[str] = ATTENTION_LAYERS,
        exclude_modules: Sequence[str] = ('patch_embed.proj',),
        trainable_modules: Sequence[str] = (
            'decode_head.input_projection',
            'decode_head.query_embed',
            'decode_head.class_head',
            'decode_head.mask_head',
            'decode_head.upscale',
        ),
    ) -> None:
        self.config = lora_config(r, lora_alpha, lora_dropout, target_modules, exclude_modules)
        self.trainable_modules = tuple(trainable_modules)
        self._adapted: nn.Module | None = None
        self._trained = False
        self._frozen_norms: list[nn.Module] = []

    def before_run(self, runner: Runner) -> None:
        """Adapt the runner's model; once, also where one Runner trains and then tests."""
        if isinstance(runner, FlexibleRunner):
            raise ValueError('LoRAHook works with the default Runner, not with FlexibleRunner: drop runner_type.')
        wrapped = is_model_wrapper(runner.model)
        outer = runner.model.module if wrapped else runner.model
        model, training = segmentor_of(runner), is_training(runner)
        if model is self._adapted:
            if training and not self._trained:
                raise ValueError('This Runner has evaluated its adapted model before any training: train in a new one.')
            return
        self._adapted, self._trained = model, training
        prepare_run(runner)
        if training:
            self._before_training(runner, model)
        matches = inject(model, self.config, self.trainable_modules)
        runner.logger.info(summarise(model, matches))
        unmatched = [target for target, names in matches.items() if not names and target not in ATTENTION_LAYERS]
        if unmatched:
            runner.logger.warning(f'target_modules {unmatched} matched no layer; the other targets are adapted.')
        self._frozen_norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        ]
        if wrapped:
            runner.model = outer  # lets go of the old wrapper before the new one takes the parameters
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), outer)
        if training:
            model.init_weights = _already_done
            self._rebuild_optimizer(runner)

    @staticmethod
    def _before_training(runner: Runner, model: nn.Module) -> None:
        if not runner.cfg.get('optim_wrapper'):
            raise ValueError(
                'LoRAHook rebuilds the optimizer from the config, which has no optim_wrapper: use Runner.from_cfg.'
            )
        pretrained = any('Pretrained' in str(getattr(module, 'init_cfg', None)) for module in model.modules())
        if not (pretrained or runner.cfg.get('load_from') or runner.cfg.get('resume')):
            runner.logger.warning(
                'LoRAHook freezes a model of random weights: neither init_cfg nor load_from names any. Set one of them.'
            )
        model.init_weights()

    def before_train(self, runner: Runner) -> None:
        """Give the model its own ``init_weights`` back: the Runner's call, which must not draw adapters anew, is over."""
        model = segmentor_of(runner)
        model.__dict__.pop('init_weights', None)
        masked = any(any(module.mask_probs) for module in model.modules() if isinstance(module, EoMTHead))
        if masked and not any(isinstance(hook, MaskAnnealingHook) for hook in runner.hooks):
            runner.logger.warning(
                'Masked attention stays on for the whole run; evaluation uses none. Add MaskAnnealingHook to custom_hooks.'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Keep the statistics of frozen batch norms."""
        for norm in self._frozen_norms:
            norm.eval()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the shapes of the adapters do not tell."""
        checkpoint['meta']['lora'] = dict(r=self.config.r, lora_alpha=self.config.lora_alpha)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare it with this hook's numbers.

        Raises:
            ValueError: If they differ, weights are missing, or a run without adapters is to be resumed.
        """
        check_weights(runner, checkpoint)
        own = dict(r=self.config.r, lora_alpha=self.config.lora_alpha)
        saved = checkpoint.get('meta', {}).get('lora', own)
        if saved != own:
            raise ValueError(f'The checkpoint was trained with LoRA {saved}, but LoRAHook has {own}: set the same.')
        if not self.config.target_modules or any(is_adapter(name) for name in weights_of(checkpoint)):
            return
        if not is_training(runner):
            runner.logger.warning('The checkpoint has no adapters: what is evaluated is the model without LoRA.')
        elif runner._resume:
            raise ValueError('The checkpoint to resume from has no adapters: to start from it, leave out --resume.')

    @staticmethod
    def _rebuild_optimizer(runner: Runner) -> None:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
        schedulers = runner.cfg.get('param_scheduler')
        runner.param_schedulers = schedulers  # the Runner scales rates only before schedulers are built
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(schedulers)


def _already_done() -> None:
    pass
