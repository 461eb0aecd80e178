"""The files in a folder of a user's."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_in(folder: Path, types: tuple[str, ...] = ('',)) -> list[Path]:
    """Files in a folder and its subfolders, in order.

    Links to files and folders are followed, except links to a folder that they lie in, which would never end. Names that
    begin with a dot are ignored, and with them what a killed process has left unfinished (:mod:`mmseg_eomt.whole`). A link
    to a file that is gone is listed, so that its reader names it.

    Args:
        folder: Where to look; it may be a link.
        types: What the names end in, in lower case. Default: all files.

    Raises:
        ValueError: If a folder cannot be read, or is a link to one that is gone.
    """
    real = folder.resolve()
    return sorted(_files(folder, frozenset((real, *real.parents)), types))


def _files(folder: Path, above: frozenset[Path], types: tuple[str, ...]) -> Iterator[Path]:
    """Files below a folder; ``above`` are the folders, without links, that it lies in or was reached through."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ValueError(f'{folder} cannot be read ({error.strerror}): make it readable, or take it out.') from error
    for entry in entries:
        path, link = folder / entry.name, entry.is_symlink()
        if entry.name.startswith('.'):
            continue
        if path.is_dir() if link else entry.is_dir():
            real = path.resolve()
            if real not in above:
                yield from _files(path, above.union((real, *real.parents)), types)
        elif entry.name.lower().endswith(types) and (link or entry.is_file()):
            yield path
        elif link and not path.suffix and not path.exists():
            raise ValueError(f'{path} is a link to {os.readlink(path)}, which does not exist: mend the link, or delete it.')
