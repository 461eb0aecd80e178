"""A model that is as it was after a load that fails: PEFT has no way back that leaves nothing behind."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CONTAINERS = (dict, OrderedDict, list, set)  # of modules, parameters, hooks, and of PEFT's settings by adapter


@contextmanager
def unchanged_on_error(model: nn.Module, values: bool = False) -> Iterator[None]:
    """Put a model back if an error leaves the context: its modules, parameters, hooks and what trains.

    Args:
        model: Any module.
        values: Whether the parameters' numbers may be changed as well, and are to be copied for it. Default: False.
    """
    modules = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
    containers = {id(v): (v, v.copy()) for *_, state in modules for v in state.values() if type(v) in _CONTAINERS}
    parameters = [(p, p.requires_grad, p.detach().clone() if values else p.data) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, state in modules:
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(state)
        for container, content in containers.values():
            _refill(container, content)
        for parameter, requires_grad, value in parameters:
            parameter.requires_grad = requires_grad
            parameter.data = value
        raise


def _refill(container: dict[Any, Any] | list[Any] | set[Any], content: Any) -> None:
    """The content of before in the container that was there, which others may hold on to, such as hooks' handles."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
