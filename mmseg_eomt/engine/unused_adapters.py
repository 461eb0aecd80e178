"""Whether a model uses the adapters that were put into it."""

import functools

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmseg_eomt.adapters.names import tuner_layers


class AdapterUse:
    """Notes, for one backward pass, which adapters a gradient reaches: a model may read a layer's weight and not call it."""

    def __init__(self) -> None:
        self._unused: dict[str, str] = {}  # adapters' parameters without a gradient yet, and their layers
        self._handles: list[RemovableHandle] = []

    def watch(self, model: nn.Module) -> None:
        """Begin."""
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

    def check(self) -> None:
        """End, after the first backward pass; later calls do nothing.

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
