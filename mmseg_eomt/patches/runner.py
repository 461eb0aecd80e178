"""The patches of mmengine's Runner, Config and loading: a config names none, so that nothing can be registered for them."""

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mmengine.runner
import torch
from mmengine.config import Config
from mmengine.runner import Runner, checkpoint
from torch import Tensor, nn

from mmseg_eomt.adapters.loading import prepare_state_dict
from mmseg_eomt.configs import PREFIX, config_path
from mmseg_eomt.data.missing import explain_missing_data
from mmseg_eomt.engine import checks
from mmseg_eomt.engine.resume import settle_resume
from mmseg_eomt.engine.runner_state import segmentor_of
from mmseg_eomt.engine.sharding import waits_for_shards
from mmseg_eomt.memory.report import announce
from mmseg_eomt.models.query_head import QueryHead
from mmseg_eomt.patches import patch


def apply() -> None:
    """Apply these patches; a second call changes nothing."""
    patch_train()
    patch_wrap_model()
    patch_call_hook()
    patch_build_dataloader()
    patch_compile()
    patch_configs()
    patch_state_dict_loading()


def patch_train() -> None:
    """Let ``--resume`` find the run's last whole checkpoint before the data loaders are built, which need the run's seed.

    Goes when mmengine has a hook before it builds them.
    """
    patch(Runner, 'train', _settled)


def _settled(train: Callable) -> Callable:
    def settled_train(self: Runner) -> nn.Module:
        if checks.has_eomt(self):
            settle_resume(self)
        return train(self)

    return settled_train


def patch_wrap_model() -> None:
    """Let a model whose base is to be sharded stay on the CPU until LoRAHook has cut it: whole, it may not fit a GPU.

    Goes when mmengine asks the hooks before it moves a model.
    """
    patch(Runner, 'wrap_model', _after_sharding)


def _after_sharding(wrap: Callable) -> Callable:
    def wrap_model(self: Runner, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        return model if waits_for_shards(self) else wrap(self, model_wrapper_cfg, model)

    return wrap_model


def patch_call_hook() -> None:
    """Let a Runner check its EoMT model, and what it loads, whichever hooks the config has: without any it is valid too.

    A loaded checkpoint is fitted ahead of all hooks, and compared with the run behind them, which no hook can be. Goes when
    mmengine lets a model bring hooks along, and prepare a checkpoint.
    """
    patch(Runner, 'call_hook', _checked)


def _checked(call: Callable) -> Callable:
    def call_hook(self: Runner, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_load_checkpoint':
            return checks.receive(self, kwargs['checkpoint'], partial(call, self, fn_name, **kwargs))
        if fn_name == 'before_run':
            checks.prepare(self)
        elif fn_name == 'before_train':
            checks.begin_training(self)
            announce(self)
        call(self, fn_name, **kwargs)

    return call_hook


def patch_build_dataloader() -> None:
    """Let Runners say which folder is missing or empty, where a dataset would only fail. Goes when datasets say so."""
    patch(Runner, 'build_dataloader', _explained)


def _explained(build: Callable) -> Callable:
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(dataloader, *args, **kwargs)
        except (AssertionError, ValueError, FileNotFoundError) as error:
            explain_missing_data(dataloader, error)
            raise

    return build_dataloader


def patch_compile() -> None:
    """Let ``compile`` of a config compile an EoMT's network in place of its whole training step.

    A step does more than its network. The matching waits for the CPU and gives another number of masks for each batch, and
    what the toolbox does around it depends on the names of files and on numbers of the log: PyTorch would compile these
    parts again at nearly every iteration, and give them up at the eighth time. Backbone and head take and give tensors of
    the same shapes all through a run, and are compiled once. Goes when mmengine asks the model what to compile.
    """
    patch(Runner, '_maybe_compile', _network_only)


def _network_only(compile_step: Callable) -> Callable:
    def maybe_compile(self: Runner, target: str) -> None:
        options, model = self.cfg.get('compile'), segmentor_of(self)
        head = getattr(model, 'decode_head', None)
        if target != 'train_step' or not isinstance(head, QueryHead) or not isinstance(options, (bool, dict)):
            compile_step(self, target)
        elif options is not False:
            for part in (getattr(model, name, None) for name in ('backbone', 'neck', 'decode_head')):
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

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    module.forward = types.MethodType(forward, module)


def patch_configs() -> None:
    """Let mmengine find ``mmseg_eomt::…``, as a config and in ``_base_``.

    It knows the packages of its own family alone, and only configs in subfolders. Goes when it asks an installed package.
    """
    patch(Config, '_get_cfg_path', _own_base)
    patch(Config, 'fromfile', _own_file)


def _own_base(get_cfg_path: Callable) -> Callable:
    def find(cfg_path: str, filename: str) -> tuple[str, str | None]:
        return (config_path(cfg_path), None) if cfg_path.startswith(PREFIX) else get_cfg_path(cfg_path, filename)

    return find


def _own_file(fromfile: Callable) -> Callable:
    def read(filename: str | Path, *args: Any, **kwargs: Any) -> Config:
        return fromfile(config_path(str(filename)), *args, **kwargs)

    return read


def patch_state_dict_loading() -> None:
    """Let mmengine fit public weights to an EoMT, put adapters in, and refuse what does not fit.

    mmengine loads without strictness: of weights in another format, of another shape, or of adapted layers it would take
    nothing, and only a long log line would say so. ``init_cfg``, ``load_from``, ``init_model`` and ``MMSegInferencer`` all
    load through this function. State dict hooks of the modules are no way round it: they see neither the file's notes nor
    the names that their module has no place for. Goes when mmengine lets a model prepare what it is given.
    """
    patch(checkpoint, 'load_state_dict', _prepared)
    mmengine.runner.load_state_dict = checkpoint.load_state_dict  # another name of the same


def _prepared(load: Callable) -> Callable:
    def load_state_dict(module: nn.Module, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        return load(module, prepare_state_dict(module, state_dict), *args, **kwargs)

    return load_state_dict
