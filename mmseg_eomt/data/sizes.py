"""Sizes on disk, as they are set and as messages name them."""

import re

UNITS = {'MB': 1e6, 'GB': 1e9, 'TB': 1e12}


def bytes_of(size: str, name: str = 'max_size') -> float:
    """Bytes of a size such as ``'50GB'``.

    Args:
        size: A number and MB, GB or TB.
        name: Of the option that it is given to.

    Raises:
        ValueError: If it is none.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?(MB|GB|TB)', str(size))
    if not found:
        raise ValueError(f"{name} is a size such as '500MB', '50GB' or '1.5TB', got {size!r}.")
    return float(found[1]) * UNITS[found[2]]


def gigabytes(size: float) -> str:
    """A size for a message."""
    return f'{size / 1e9:,.1f} GB' if size >= 1e8 else f'{size / 1e6:,.1f} MB'
