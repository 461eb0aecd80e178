"""Damage to the bytes of any file."""

import random
from collections.abc import Callable
from pathlib import Path

Kind = Callable[[Path, random.Random], None]
PAGE = b'<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Sign in to download</body></html>'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1234567\n'


def _changed(path: Path, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
    data = bytearray(path.read_bytes())
    result = change(data)
    path.write_bytes(data if result is None else result)


def flip(path: Path, draw: random.Random, first: float = 0, last: float = 1) -> None:
    """Another value for one bit, in a part of the file."""

    def change(data: bytearray) -> None:
        place = min(len(data) - 1, int(draw.uniform(first, last) * len(data)))
        data[place] ^= 1 << draw.randrange(8)

    _changed(path, change)


def flip_at_start(path: Path, draw: random.Random) -> None:
    """In a zip file's first header, safetensors' header or a picture's."""

    def change(data: bytearray) -> None:
        data[draw.randrange(min(len(data), 300))] ^= 1 << draw.randrange(8)

    _changed(path, change)


def flip_in_directory(path: Path, draw: random.Random) -> None:
    """Near the end, where a zip file's table of contents stands."""

    def change(data: bytearray) -> None:
        data[-1 - draw.randrange(min(len(data), 6000))] ^= 1 << draw.randrange(8)

    _changed(path, change)


def truncate(path: Path, draw: random.Random) -> None:
    """Cut short, anywhere."""
    _changed(path, lambda data: data[: draw.randrange(len(data))])


def truncate_end(path: Path, draw: random.Random) -> None:
    """The last bytes are missing."""
    _changed(path, lambda data: data[: -draw.randint(1, 100)])


def overwrite(path: Path, draw: random.Random) -> None:
    """512 other bytes."""

    def change(data: bytearray) -> None:
        place = draw.randrange(max(1, len(data) - 512))
        data[place : place + 512] = draw.randbytes(len(data[place : place + 512]))

    _changed(path, change)


def zeros(path: Path, draw: random.Random) -> None:
    """A block of zeros, as a file system leaves it after a crash."""

    def change(data: bytearray) -> None:
        place, size = draw.randrange(len(data)), draw.choice([512, 4096, 65536])
        data[place : place + size] = bytes(len(data[place : place + size]))

    _changed(path, change)


def zeros_throughout(path: Path, draw: random.Random) -> None:
    """Its size, and nothing but zeros."""
    _changed(path, lambda data: bytes(len(data)))


def empty(path: Path, draw: random.Random) -> None:
    """No byte."""
    path.write_bytes(b'')


def page(path: Path, draw: random.Random) -> None:
    """What a site answers in place of the file."""
    path.write_bytes(PAGE)


def pointer(path: Path, draw: random.Random) -> None:
    """Of Git LFS."""
    path.write_bytes(POINTER % draw.randbytes(32).hex().encode())


def folder(path: Path, draw: random.Random) -> None:
    """A folder of its name."""
    path.unlink()
    path.mkdir()


def missing(path: Path, draw: random.Random) -> None:
    """It is not there."""
    path.unlink()


def unreadable_link(path: Path, draw: random.Random) -> None:
    """A symbolic link to nowhere."""
    path.unlink()
    path.symlink_to(path.with_name('nowhere'))


def nonsense(path: Path, draw: random.Random) -> None:
    """Random bytes."""
    path.write_bytes(draw.randbytes(draw.randint(1, 5000)))


def link(path: Path, draw: random.Random) -> None:
    """Harmless: a symbolic link to the file."""
    path.rename(path.with_name('linked'))
    path.symlink_to(path.with_name('linked'))


LOST: tuple[Kind, ...] = (
    truncate,
    truncate_end,
    zeros_throughout,
    empty,
    page,
    pointer,
    folder,
    missing,
    unreadable_link,
    nonsense,
)
WITHIN: tuple[Kind, ...] = (flip, flip, flip, flip_at_start, flip_in_directory, overwrite, overwrite, zeros)
HARMLESS: tuple[Kind, ...] = (link,)
