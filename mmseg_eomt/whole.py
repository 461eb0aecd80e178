"""Files and folders that are there whole or not at all: written beside their place, and renamed once complete."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = '.new-'  # in the name of what is not complete yet, after the beginning of the final name


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file so that whoever reads it meets the old one or the new, and never half of it.

    Args:
        path: Where it is to be; an existing file is replaced, and folders above it are made.

    Yields:
        The path to write to, of the same suffix. It takes its place when the context ends, and is deleted after an error.
        A process that is killed leaves at most a hidden file whose name contains ``.new-``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name[:100]}{MARK}', dir=path.parent) as folder:
        new = Path(folder) / path.name
        yield new
        _to_disk(new)
        os.replace(new, path)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder so that it never holds files of two versions.

    Args:
        folder: Where it is to be; an existing one is replaced as a whole, and folders above it are made.

    Yields:
        An empty folder to write to. It takes its place when the context ends, and is deleted after an error.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name[:100]}{MARK}', dir=folder.parent) as place:
        new, old = Path(place) / 'new', Path(place) / 'old'
        new.mkdir()
        yield new
        for file in filter(Path.is_file, new.rglob('*')):
            _to_disk(file)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists():
                os.rename(old, folder)
            raise


def check_writable(folder: str | Path) -> None:
    """Make sure, before long work, that files can be written to a folder; it need not exist yet, and nothing is left there.

    Raises:
        OSError: If not, with the folder and what is in the way.
    """
    place = folder = Path(folder)
    try:
        while not (place.exists() or place.is_symlink()):
            place = place.parent
        with tempfile.TemporaryDirectory(prefix=f'.check{MARK}', dir=place):
            pass
    except OSError as error:
        raise OSError(f'{folder} cannot be written to ({place}: {error.strerror}): give another place.') from error


def keep(path: str | Path, key: str, content: Any) -> None:
    """Keep a result, so that a run which is stopped goes on after it.

    Args:
        path: Of a JSON file, which is written whole.
        key: What the result depends on: :func:`kept` returns it for this key alone.
        content: The result, as JSON takes it.
    """
    with whole_file(path) as new:
        new.write_text(json.dumps(dict(key=key, result=content)), encoding='utf-8')


def kept(path: str | Path, key: str) -> Any:
    """The result that :func:`keep` has kept for a key; None if there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        return content['result'] if content['key'] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _to_disk(path: Path) -> None:
    """Have the content on the disk before the name is: a power cut could otherwise leave an empty file of that name."""
    with path.open('rb') as file:
        os.fsync(file.fileno())


def is_unfinished(path: str | Path) -> bool:
    """Whether a path is inside what a killed process has left unfinished."""
    return any(part.startswith('.') and MARK in part for part in Path(path).parts)
