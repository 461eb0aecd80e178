"""Memory that is alive while code runs, by what it is for."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = (
    'weights',
    'gradients',
    'optimizer',
    'images and labels',
    'backbone',
    'joint blocks',
    'mask module',
    'losses',
    'workspace',
)


class Ledger(TorchDispatchMode):
    """Counts the storages that operators make, under the part that is being run, until they are freed.

    It runs under a ``FakeTensorMode``, where a storage has a size and no memory. What an operator takes and frees inside
    itself is not seen.

    Args:
        rows_found: What ``nonzero`` is taken to find in a vector of this many elements; in any other, all of them.

    Attributes:
        current: Bytes of each part.
        peak: The same at the moment when there were most.
    """

    def __init__(self, rows_found: dict[int, int] | None = None) -> None:
        super().__init__()
        self.current: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.rows_found = rows_found or {}
        self._parts = ['workspace']
        self._alive: dict[int, tuple[str, int, Any]] = {}
        self._total = self._highest = 0

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """What is made in here belongs to a part."""
        self._parts.append(part)
        try:
            yield
        finally:
            self._parts.pop()

    def forget_peak(self) -> None:
        """Let the peak count from now on."""
        self._highest, self.peak = self._total, Counter(self.current)

    def count(self, tensor: Tensor, part: str) -> None:
        """Count a tensor, known or not, under a part."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._alive.get(key)
        size = storage.nbytes()
        if known is None:
            self._alive[key] = part, size, weakref.ref(storage, partial(self._freed, key))
            self._total += size
        else:
            self.current[known[0]] -= known[1]
            self._total += size - known[1]
            self._alive[key] = part, size, known[2]
        self.current[part] += size
        if self._total > self._highest:
            self.forget_peak()

    def _rows(self, mask: Tensor) -> int:
        return self.rows_found.get(mask.numel(), mask.numel()) if mask.ndim == 1 else mask.numel()

    def _indices(self, index: Tensor | None) -> list[Tensor | None]:
        """What picks elements, with numbers in place of a mask."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        rows = self._rows(index)
        return [index.new_empty(rows, dtype=torch.long) for _ in range(index.ndim)]

    def _freed(self, key: int, _: Any) -> None:
        part, size, _ = self._alive.pop(key)
        self.current[part] -= size
        self._total -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it makes."""
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:  # the number itself is never what memory depends on
            return 1
        if func is aten.nonzero.default:
            (given,) = args
            out = given.new_empty((self._rows(given), given.ndim), dtype=torch.long)
        else:
            if func is aten.index.Tensor:
                args = (args[0], [index for given in args[1] for index in self._indices(given)])
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                self.count(tensor, self._parts[-1])
        return out
