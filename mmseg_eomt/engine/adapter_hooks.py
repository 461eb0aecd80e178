"""The small hooks that LoRAHook registers: each one concern of a run with adapters."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from mmseg_eomt.adapters.checkpoint import KEY, left_out
from mmseg_eomt.adapters.merge import merge
from mmseg_eomt.adapters.names import adapter_names, plain_name, tuner_layers
from mmseg_eomt.adapters.peft_folder import check_exportable, save_adapter
from mmseg_eomt.adapters.precision import quantized_layers
from mmseg_eomt.engine.runner_state import segmentor_of
from mmseg_eomt.weights.arch import ARCH_NOTE


@dataclass(eq=False)
class SlimCheckpointHook(Hook):
    """Keep weights that can be found again out of the checkpoints, and note in them what they hold.

    Attributes:
        base: As :func:`~mmseg_eomt.adapters.base_weights.describe_base` returned.
        note: Makes the note (:func:`~mmseg_eomt.adapters.checkpoint.note`), given whether a checkpoint is ``complete``.
        save: ``'trainable'`` or ``'full'``, which keeps all weights in.
        save_adapter: Whether to write each checkpoint in PEFT's format too.
    """

    base: dict[str, Any]
    note: Callable[..., dict[str, Any]]
    save: str
    save_adapter: bool
    priority = 'LOWEST'  # after an EMA hook has put its weights in

    def check(self, runner: Runner) -> None:
        """Find now what would fail at the first checkpoint.

        Raises:
            ValueError: If the model or its adapters cannot be saved, or a published checkpoint would lack its note.
        """
        model = segmentor_of(runner)
        quantized = quantized_layers(model)
        lost = [name for name in quantized if f'{plain_name(name)}.weight' not in self.base['fingerprints']]
        if lost or (quantized and self.save == 'full'):
            raise ValueError(
                "A base of 8 or 4 bits is not saved: it takes save='trainable', and weights from init_cfg or load_from."
            )
        if self.save_adapter:
            check_exportable(model, self.base)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.published_keys and 'meta' not in hook.published_keys:
                raise ValueError(
                    f"CheckpointHook's published_keys={list(hook.published_keys)} lacks 'meta', where adapters and base "
                    f'are noted: the published file could not be used. Add it.'
                )

    def dropped(self, model: nn.Module) -> set[str]:
        """Names of the weights that are not saved."""
        return left_out(model, self.base) if self.save == 'trainable' else set()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint small, and say in it what it holds."""
        model, meta = segmentor_of(runner), checkpoint['meta']
        dropped = self.dropped(model)
        if dropped or adapter_names(model):  # all of a model without adapters is a plain checkpoint
            meta[KEY] = self.note(complete=not dropped)
        if self.save_adapter:
            folder = Path(runner.work_dir) / 'adapters' / f'iter_{meta["iter"]}'
            known = {name: meta[name] for name in ('iter', 'epoch', 'dataset_meta', ARCH_NOTE) if name in meta}
            save_adapter(model, folder, checkpoint['state_dict'], self.base, known)
        for key, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
            for name in dropped if key in checkpoint else ():
                checkpoint[key].pop(f'{prefix}{name}', None)


class FrozenNormsHook(Hook):
    """Keep the running statistics of frozen batch norms, which ``model.train()`` would let go on."""

    def before_train(self, runner: Runner) -> None:
        """Find the norms of the wrapped model: wrapping replaces those that are synchronised."""
        self._norms = [
            module
            for module in segmentor_of(runner).modules()
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        ]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Put them into evaluation mode; the loop has put all of the model into training mode after an evaluation."""
        for norm in self._norms:
            norm.eval()


class UnusedAdaptersHook(Hook):
    """Make sure, in the first backward pass, that the loss depends on every adapter.

    A model may read the weight of a layer and not call the layer, as PyTorch's own attention does.
    """

    def __init__(self) -> None:
        self._unused: dict[str, str] = {}  # adapters' parameters without a gradient yet, and their layers
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Begin to note the gradients of adapters."""
        model = segmentor_of(runner)
        self._unused = {
            f'{layer}.{name}': layer
            for layer, module in tuner_layers(model).items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not name.startswith('base_layer.')
        }
        for name in self._unused:
            self._handles.append(model.get_parameter(name).register_hook(functools.partial(self._note, name)))

    def _note(self, name: str, _gradient: Tensor) -> None:
        self._unused.pop(name, None)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Look once which adapters had a gradient.

        Raises:
            ValueError: If the loss does not depend on some adapters, with the names of their layers.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        layers, self._unused = list(dict.fromkeys(self._unused.values())), {}
        if layers:
            raise ValueError(
                f'The loss does not depend on the adapters of {len(layers)} layers, such as {", ".join(layers[:3])}: the '
                f'model does not call these layers, and the adapters would never learn. Name them in exclude_modules.'
            )


class MergeForEvaluationHook(Hook):
    """Merge the adapters into the weights where nothing is trained: beside them they would take time."""

    def before_val(self, runner: Runner) -> None:
        """Merge, once the checkpoint is loaded."""
        model = segmentor_of(runner)
        averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)  # it exchanges parameters with a copy's
        if averaged or not tuner_layers(model):
            return
        try:
            merge(model)
        except ValueError as error:
            runner.logger.info(f'Adapters were not merged: {error}')

    before_test = before_val
