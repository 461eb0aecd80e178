"""The commands, a module each: ``mmseg_eomt.commands.NAME.main(argv)`` is ``mmseg-eomt NAME`` and ``tools/NAME.py``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_in_a_sentence(command: str) -> Iterator[None]:
    """End the process with the sentence of an error that the user can mend, and without a traceback."""
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f'{command}: {error}')
