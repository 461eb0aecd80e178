"""Where a Runner adapts its model."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner, Runner
from mmseg.registry import HOOKS

from mmseg_eomt.adapters.inject import inject, lora_config
from mmseg_eomt.adapters.summary import summarise
from mmseg_eomt.models.split import check_split


@HOOKS.register_module()
class LoRAHook(Hook):
    """Put LoRA adapters (PEFT) into the model once its pretrained weights are in, and freeze the rest.

    A Runner wraps the model and builds optimizer and schedulers before it loads any weights. So in ``before_run``, ahead of
    the other hooks, this one initialises the weights, injects the adapters, wraps the model anew and rebuilds optimizer and
    schedulers from the config: they, the checkpoints, an EMA copy and evaluation all see the adapted model. When testing it
    injects only, and the checkpoint's adapters find their place. It prints what trains and what is frozen.

    Args:
        r: Rank. Default: 16.
        lora_alpha: Scale, over ``r``. Default: 32.
        lora_dropout: Dropout in front of an adapter. Default: 0.05.
        target_modules: Last parts of the names of the layers to adapt; an empty list adapts none. Default: the attention
            layers of common ViTs.
        exclude_modules: Last parts of names to leave out. Default: the patch embedding, whose layer is called ``proj`` too.
        trainable_modules: Modules that are trained beside the adapters. Default: the parts of :class:`EoMTHead` that no
            checkpoint of a ViT holds.

    Raises:
        ImportError: If PEFT is missing.
        ValueError: If a number is out of range or a name matches nothing.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        r: int = 16,
        lora_alpha: float = 32,
        lora_dropout: float = 0.05,
        target_modules: Sequence[str] = ('qkv', 'proj', 'q_proj', 'v_proj'),
        exclude_modules: Sequence[str] = ('patch_embed.proj',),
        trainable_modules: Sequence[str] = (
            'decode_head.query_embed',
            'decode_head.class_head',
            'decode_head.mask_head',
            'decode_head.upscale',
        ),
    ) -> None:
        self.config = lora_config(r, lora_alpha, lora_dropout, target_modules, exclude_modules)
        self.trainable_modules = tuple(trainable_modules)
        self._adapted = None

    def before_run(self, runner: Runner) -> None:
        """Adapt the runner's model; once, also where one Runner trains and then tests."""
        if isinstance(runner, FlexibleRunner):
            raise ValueError('LoRAHook works with the default Runner, not with FlexibleRunner: drop runner_type.')
        wrapped = is_model_wrapper(runner.model)
        model = runner.model.module if wrapped else runner.model
        if model is self._adapted:
            return
        self._adapted = model
        check_split(model)
        training = isinstance(runner.optim_wrapper, OptimWrapper)
        if training and not runner.cfg.get('optim_wrapper'):
            raise ValueError(
                'LoRAHook rebuilds the optimizer from the config, which has no optim_wrapper: use Runner.from_cfg.'
            )
        if training and hasattr(model, 'init_weights'):
            model.init_weights()
        matches = inject(model, self.config, self.trainable_modules)
        runner.logger.info(summarise(model, matches))
        if wrapped:
            runner.model = model  # lets go of the old wrapper before the new one takes the parameters
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        if training:
            model.init_weights = _already_done
            self._rebuild_optimizer(runner)

    def before_train(self, runner: Runner) -> None:
        """Give the model its own ``init_weights`` back: the Runner's call, which must not draw adapters anew, is over."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.__dict__.pop('init_weights', None)

    @staticmethod
    def _rebuild_optimizer(runner: Runner) -> None:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        if runner.cfg.get('param_scheduler') is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)


def _already_done() -> None:
    pass
