"""How several adapters' changes of one weight become one: PEFT's own functions, on the changes themselves."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

METHODS = ('linear', 'ties', 'dare_linear', 'dare_ties', 'magnitude_prune')
Combine = Callable[[Sequence[Tensor], Sequence[float]], list[Tensor]]


def check_method(method: str, density: float | None) -> None:
    """Make sure that a way of combining is known, and has a density where it drops values.

    Raises:
        ValueError: If not, with what to give.
    """
    if method not in METHODS:
        raise ValueError(f'method is one of {", ".join(METHODS)}, got {method!r}.')
    if method == 'linear' and density is not None:
        raise ValueError(f"method='linear' keeps every value: leave density={density} out, or name another method.")
    if method != 'linear' and (density is None or not 0 < density <= 1):
        raise ValueError(
            f'method={method!r} needs the fraction of values that it keeps, density above 0 and up to 1, got {density}.'
        )


@contextmanager
def combining(method: str, density: float | None, seed: int) -> Iterator[Combine]:
    """The function that combines changes, with its own random numbers while the context is open.

    All of it runs on the CPU, so that a seed gives the same weights wherever the model is.

    Args:
        method: One of :data:`METHODS`.
        density: Fraction of values that are kept.
        seed: Of DARE's choice of values.

    Returns:
        A function of changes, all of one shape, and their factors. It returns what is to be added to the weight.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield _linear if method == 'linear' else _of_peft(method, density)


def _linear(changes: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
    return [factor * change for change, factor in zip(changes, factors)]


def _of_peft(method: str, density: float | None) -> Combine:
    from peft.utils import merge_utils

    function = getattr(merge_utils, method)

    def combine(changes: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor]:
        if not changes:
            return []
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='The density')  # of 1: signs are still elected
            combined = function([change.float().cpu() for change in changes], torch.tensor(factors), density)
        return [combined.to(changes[0].device)]

    return combine
