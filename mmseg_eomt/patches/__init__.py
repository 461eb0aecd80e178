"""Functions of the toolbox that the plugin replaces: each once, whoever else wraps it."""

import functools
from collections.abc import Callable
from typing import Any

_MARK = '_mmseg_eomt_patches'


def patch(owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
    """Put a wrapper in the place of a function; a second call with the same ``make`` changes nothing.

    What is in place already is known by a mark of the plugin's own: ``__wrapped__``, which ``functools.wraps`` leaves, says
    only that someone has wrapped the function. A wrapper that another package puts around ours in this way keeps the mark.

    Args:
        owner: The module or class that holds the function.
        name: Of the function there.
        make: Takes the function, as it is called from outside, and returns what is to be called instead. Its qualified name
            is the mark.
    """
    stored = owner.__dict__.get(name) if isinstance(owner, type) else None
    function = getattr(owner, name)
    done = getattr(function, _MARK, ())
    key = f'{make.__module__}.{make.__qualname__}'
    if key in done:
        return
    new = functools.wraps(function)(make(function))
    setattr(new, _MARK, (*done, key))
    setattr(owner, name, staticmethod(new) if isinstance(stored, staticmethod) else new)
