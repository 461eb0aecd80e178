"""Whether code is to take a CPU's way or another device's."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_assumed: list[str] = []  # the innermost last


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is on a CPU, or is taken for one that is."""
    return (_assumed[-1] if _assumed else tensor.device.type) == 'cpu'


@contextmanager
def assumed_device(kind: str) -> Iterator[None]:
    """Let all code take the way of a device that need not be there: a GPU's memory is planned without one.

    Args:
        kind: ``'cpu'`` or ``'cuda'``.
    """
    _assumed.append(kind)
    try:
        yield
    finally:
        _assumed.pop()
