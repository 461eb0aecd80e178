"""Decoded images on disk, so that a run decodes each of them once."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmseg.registry import TRANSFORMS

from mmseg_eomt.data.sizes import bytes_of, gigabytes
from mmseg_eomt.whole import MARK, check_writable, whole_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAGIC = int.from_bytes(b'eomtimg1', 'little')
HEADER = 8  # words: magic, time and size of the image file, height, width, channels, 0, check
CHECK = HEADER - 1
WORD = np.dtype('<u8')
SUFFIX = '.pixels'
LEDGER = 'usage.json'
WRITERS = 'writers.lock'


class ImageCache:
    """A folder of decoded images, uint8, read through memory mapping.

    An entry belongs to a path, the reader's options and OpenCV's version, and holds for the file's time and size: a changed
    file is decoded again and replaces it. Entries are written whole, and each is checked by its sum when it is read. Any
    number of processes may read and write. The ledger keeps the folder within its bound: an entry has its room before it is
    written. What has no room is decoded each time: a run goes through all images in turn, so that giving up old entries for
    new ones would only keep those that come last.

    Args:
        folder: Where the entries are; it is made.
        max_bytes: The most that they may take.
        options: What of the reader changes its pixels.
    """

    def __init__(self, folder: str | Path, max_bytes: float, options: tuple[str, ...]) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.options = options
        self._stopped = False  # in this process: no room, or an error
        self.number = self.size = 0  # of entries, and their bytes, at the start
        try:
            self._take_stock()
        except OSError as error:
            self._stop(error)

    def entry(self, path: str) -> Path:
        """The file of an image."""
        key = repr((os.path.abspath(path), cv2.__version__, *self.options))
        return self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}'

    def _count(self) -> tuple[int, int]:
        """Number of entries and their bytes; under the ledger's lock, so that none is removed meanwhile."""
        sizes = [file.stat().st_size for file in self.folder.glob(f'*{SUFFIX}')]
        return len(sizes), sum(sizes)

    def read(self, path: str, state: os.stat_result) -> np.ndarray | None:
        """An image as it was decoded, of its own to write on; None if there is none of the file as it is.

        Args:
            path: Of the image file.
            state: The file's.
        """
        entry = self.entry(path)
        try:
            words = np.memmap(entry, WORD, mode='c').view(np.ndarray)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # unreadable, or no multiple of a word
            words = np.zeros(0, WORD)
        image = _image_of(words)
        if image is None:
            _warn(f'{entry} of the image cache is damaged: {path} is decoded again.')
            self._remove(entry)
            return None
        return image if words[1:3].tolist() == _stamp(state) else None

    def write(self, path: str, state: os.stat_result, image: np.ndarray) -> None:
        """Keep a decoded image if there is room.

        Args:
            path: Of the image file.
            state: The file's, from before it was read.
            image: (H, W) or (H, W, channels), uint8.
        """
        if self._stopped:
            return
        entry, size = self.entry(path), WORD.itemsize * _num_words(image.size)
        try:
            with self._lock(fcntl.LOCK_SH):
                if self._reserve(entry, size):
                    self._fill(entry, image, state)
        except OSError as error:
            self._stop(error)

    def _reserve(self, entry: Path, size: int) -> bool:
        """Whether there is room for an entry, which it then has."""
        with self._ledger() as ledger:
            pending = ledger['pending']
            if entry.name in pending:  # another process is writing it
                return False
            growth = size - (entry.stat().st_size if entry.exists() else 0)
            if ledger['bytes'] + sum(pending.values()) + growth <= self.max_bytes:
                pending[entry.name] = growth
                return True
            self._stopped = True
            # other processes of a distributed run show no warnings
            if is_main_process() and ledger.get('full') != self.max_bytes:
                ledger['full'] = self.max_bytes
                _warn(
                    f'The image cache {self.folder} has reached {gigabytes(self.max_bytes)}: further images are decoded '
                    f'each time. Raise cache_size if the disk has room.'
                )
        return False

    def _fill(self, entry: Path, image: np.ndarray, state: os.stat_result) -> None:
        """Write an entry that has its room, while other processes write others."""
        written = False
        try:
            with whole_file(entry) as new:
                _words_of(image, state).tofile(new)
            written = True
        finally:
            with self._ledger() as ledger:
                growth = ledger['pending'].pop(entry.name, 0)
                ledger['bytes'] += growth if written else 0

    def _remove(self, entry: Path) -> None:
        try:
            with self._ledger() as ledger:
                entry.unlink(missing_ok=True)
                ledger['bytes'] = self._count()[1]
        except OSError:  # nor will it take another: write() says so
            pass

    def _take_stock(self) -> None:
        """Count what is there: entries may have been deleted, and killed processes may have left some unfinished.

        While another process writes, the ledger is in use and kept.
        """
        try:
            with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB), self._ledger() as ledger:
                for unfinished in self.folder.glob(f'.*{SUFFIX}{MARK}*'):
                    shutil.rmtree(unfinished, ignore_errors=True)
                ledger.update(bytes=self._count()[1], pending={})
        except BlockingIOError:
            pass
        with self._ledger() as ledger:
            self.number, self.size = self._count()
            ledger.pop('full', None)  # each run says it

    def _stop(self, error: OSError) -> None:
        self._stopped = True
        _warn(f'The image cache {self.folder} takes no further images from this process, which decodes them: {error}')

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Shared by those that write entries, exclusive for the one that counts them."""
        with (self.folder / WRITERS).open('a') as file:
            fcntl.flock(file, kind)
            yield

    @contextmanager
    def _ledger(self) -> Iterator[dict[str, Any]]:
        """Bytes of the entries and of those being written, for this process alone; counted where a killed one left none."""
        with (self.folder / LEDGER).open('a+', encoding='utf-8') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            content = file.read()
            try:
                ledger = dict(json.loads(content))
                ledger.update(bytes=int(ledger['bytes']), pending=dict(ledger['pending']))
            except (ValueError, TypeError, KeyError):
                ledger = dict(bytes=self._count()[1], pending={})
            yield ledger
            new = json.dumps(ledger)
            if new != content:
                file.truncate(0)
                file.write(new)


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_mtime_ns % 2**64, state.st_size]


def _num_words(size: int) -> int:
    """Of the entry of an image of so many bytes."""
    return HEADER - (-size // WORD.itemsize)


def _words_of(image: np.ndarray, state: os.stat_result) -> np.ndarray:
    """An entry's content. All words but the check add up to the check."""
    words = np.zeros(_num_words(image.size), WORD)
    channels = image.shape[2] if image.ndim == 3 else 0
    words[:CHECK] = [MAGIC, *_stamp(state), *image.shape[:2], channels, 0]
    words[HEADER:].view(np.uint8)[: image.size] = image.reshape(-1)
    words[CHECK] = words.sum(dtype=WORD)
    return words


def _image_of(words: np.ndarray) -> np.ndarray | None:
    """The image of an entry's content; None if that is damaged."""
    if len(words) < HEADER or words[0] != MAGIC:
        return None
    height, width, channels = (int(word) for word in words[3:6])
    size = height * width * max(channels, 1)
    if len(words) != _num_words(size):
        return None
    total = int(words[:CHECK].sum(dtype=WORD)) + int(words[HEADER:].sum(dtype=WORD))
    if total % 2**64 != words[CHECK]:
        return None
    return words[HEADER:].view(np.uint8)[:size].reshape((height, width, channels) if channels else (height, width))


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """The toolbox's ``LoadImageFromFile``, which can keep decoded images on disk.

    ``--cfg-options train_dataloader.dataset.pipeline.0.cache_dir=work_dirs/images`` lets a run read each image from the
    cache once it has been decoded, with the same pixels. Without ``cache_dir`` it is the toolbox's.

    Args:
        args: As of the toolbox's.
        cache_dir: Folder for decoded images, on a fast disk; several runs may share it. An image takes height × width × 3
            bytes: 2048×1024 pixels 6.3 MB, the 2,975 of Cityscapes 19 GB. Default: None, no cache.
        cache_size: The most that the folder may hold, in MB, GB or TB. Default: ``'50GB'``.
        kwargs: As of the toolbox's.

    Raises:
        ValueError: If what is read is no file on a disk or not uint8, or the size is none.
        OSError: If nothing can be written to the folder.
    """

    def __init__(self, *args: Any, cache_dir: str | None = None, cache_size: str = '50GB', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache: ImageCache | None = None
        max_bytes = bytes_of(cache_size, 'cache_size')
        if cache_dir is None:
            return
        reason = self.why_no_cache(dict(vars(self)))
        if reason:
            raise ValueError(reason)
        check_writable(cache_dir)
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        self.cache = ImageCache(cache_dir, max_bytes, (self.color_type, self.imdecode_backend))
        found = f'{self.cache.number:,} decoded images, {gigabytes(self.cache.size)} of {cache_size}'
        print_log(f'Image cache {cache_dir}: {found}.', 'current')

    @staticmethod
    def why_no_cache(options: dict[str, Any]) -> str | None:
        """Why a reader of such arguments takes no ``cache_dir``; None if it does."""
        if fcntl is None:
            return "cache_dir needs locks on files, and Python's fcntl is not there (Windows): drop it."
        if options.get('backend_args') or options.get('file_client_args'):
            return 'cache_dir is for image files on a disk: drop it, or backend_args.'
        if options.get('to_float32'):
            return 'cache_dir keeps images of uint8: drop it, or to_float32.'
        return None

    def transform(self, results: dict) -> dict | None:
        """Load an image; see the toolbox's."""
        path = results['img_path']
        if self.cache is None or not os.path.isfile(path):
            return super().transform(results)
        state = os.stat(path)
        image = self.cache.read(path, state)
        if image is not None:
            results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
            return results
        loaded = super().transform(results)
        if loaded is not None:
            if loaded['img'].dtype != np.uint8:
                raise ValueError(f'cache_dir keeps images of uint8, and {path} is {loaded["img"].dtype}: drop cache_dir.')
            self.cache.write(path, state, loaded['img'])
        return loaded

    def __repr__(self) -> str:
        return (
            super().__repr__() if self.cache is None else f'{super().__repr__()[:-1]}, cache_dir={str(self.cache.folder)!r})'
        )
