"""Decoded images on disk, so that a run decodes each of them once."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmengine.logging import print_log
from mmseg.registry import TRANSFORMS

from mmseg_eomt.data.sizes import bytes_of, gigabytes
from mmseg_eomt.whole import check_writable, whole_file

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


class ImageCache:
    """A folder of decoded images, uint8, read through memory mapping: what is not looked at is not read.

    An entry belongs to a path and the reader's options, and holds for the file's time and size: a changed file is decoded
    again and replaces it. Entries are written whole, and each is checked by its sum when it is read, which takes half a
    millisecond for 2048×1024 pixels. Any number of processes may read and write. A lock on the ledger of the folder's size
    keeps it within its bound. What has no room is decoded each time: a run goes through all images in turn, so that giving
    up old entries for new ones would only keep those that come last.

    Args:
        folder: Where the entries are; it is made.
        max_bytes: The most that they may take.
        options: What of the reader changes its pixels.
    """

    def __init__(self, folder: str | Path, max_bytes: float, options: tuple[str, ...]) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.options = options
        self._stopped = False  # in this process, after an error

    def entry(self, path: str) -> Path:
        """The file of an image."""
        key = repr((os.path.abspath(path), *self.options))
        return self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}'

    def usage(self) -> tuple[int, int]:
        """Number of entries and their bytes."""
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
        entry, words = self.entry(path), _words_of(image, state)
        try:
            with self._ledger() as ledger:
                old = entry.stat().st_size if entry.exists() else 0
                total = ledger['bytes'] - old + words.nbytes
                if total <= self.max_bytes:
                    with whole_file(entry) as new:
                        words.tofile(new)
                    ledger['bytes'] = total
                elif ledger.get('full') != self.max_bytes:
                    ledger['full'] = self.max_bytes
                    _warn(
                        f'The image cache {self.folder} has reached {gigabytes(self.max_bytes)}: further images are decoded '
                        f'each time. Raise cache_size if the disk has room.'
                    )
        except OSError as error:
            self._stopped = True
            _warn(f'The image cache {self.folder} takes no further images from this process, which decodes them: {error}')

    def _remove(self, entry: Path) -> None:
        try:
            with self._ledger() as ledger:
                entry.unlink(missing_ok=True)
                ledger['bytes'] = self.usage()[1]
        except OSError:  # nor will it take another: write() says so
            pass

    @contextmanager
    def _ledger(self) -> Iterator[dict[str, Any]]:
        """What the entries take, for this process alone; counted where a killed process has left no number."""
        with (self.folder / LEDGER).open('a+', encoding='utf-8') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            try:
                ledger = dict(json.loads(file.read()))
                ledger['bytes'] = int(ledger['bytes'])
            except (ValueError, TypeError, KeyError):
                ledger = dict(bytes=self.usage()[1])
            before = dict(ledger)
            yield ledger
            if ledger != before or not file.tell():
                file.truncate(0)
                file.write(json.dumps(ledger))


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_mtime_ns % 2**64, state.st_size]


def _words_of(image: np.ndarray, state: os.stat_result) -> np.ndarray:
    """An entry's content. All words but the check add up to the check."""
    words = np.zeros(HEADER - (-image.size // WORD.itemsize), WORD)
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
    if len(words) != HEADER - (-size // WORD.itemsize):
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
        if fcntl is None:
            raise ValueError('cache_dir needs locks on files, which Windows lacks: drop it.')
        if self.backend_args or self.file_client_args:
            raise ValueError('cache_dir is for image files on a disk: drop it, or backend_args.')
        if self.to_float32:
            raise ValueError('cache_dir keeps images of uint8: drop it, or to_float32.')
        check_writable(cache_dir)
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        self.cache = ImageCache(cache_dir, max_bytes, (self.color_type, self.imdecode_backend))
        number, size = self.cache.usage()
        print_log(f'Image cache {cache_dir}: {number:,} decoded images, {gigabytes(size)} of {cache_size}.', 'current')

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
