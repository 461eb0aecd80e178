"""Features and labels of fixed views on disk: written in whole files, read through memory mapping."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import Dataset

from mmseg_eomt.data.sizes import bytes_of, gigabytes
from mmseg_eomt.whole import whole_file

PER_FILE = 32  # images
DTYPES = {'float16': torch.float16, 'float32': torch.float32}
DIFFERENT_SIZES = (
    'Images of different sizes cannot be cached: crop and pad them to one size in the pipeline of train_dataloader, or set '
    'size of data_preprocessor.'
)


class Entry(NamedTuple):
    """One view of an image.

    Args:
        tensors: Its features.
        grid: Rows and columns of patches.
        sample: Its labels and meta information.
    """

    tensors: list[Tensor]
    grid: tuple[int, int]
    sample: SegDataSample


class FeatureStore:
    """The files of one cache. Each holds one view of up to 32 images, and is there whole or not at all.

    Args:
        folder: Of this cache alone.
        num_images: Images of the dataset.
        views: Views of each image.
        dtype: ``'float16'`` or ``'float32'``: how features are kept.
    """

    def __init__(self, folder: Path, num_images: int, views: int, dtype: str) -> None:
        self.folder = folder
        self.num_images = num_images
        self.views = views
        self.dtype = dtype
        self._open: dict[Path, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: each maps the files itself."""
        return {**self.__dict__, '_open': {}}

    def files(self) -> list[tuple[int, int]]:
        """View and part of each file."""
        return [(view, part) for view in range(self.views) for part in range(-(-self.num_images // PER_FILE))]

    def missing(self) -> list[tuple[int, int]]:
        """View and part of the files that are not there."""
        return [file for file in self.files() if not self._path(*file).is_file()]

    def check(self) -> None:
        """Make sure that all files can be read, and hold features of one size.

        Raises:
            ValueError: If not, with what to do.
        """
        kinds = {self._kind(self.content(*file)) for file in self.files()}
        if len(kinds) > 1:
            raise ValueError(DIFFERENT_SIZES)

    def _kind(self, content: dict[str, Any]) -> tuple[Any, ...]:
        return content['grid'], tuple(tensor.shape[1:] for tensor in content['tensors'])

    def images_of(self, part: int) -> range:
        """The images in the files of a part."""
        return range(part * PER_FILE, min((part + 1) * PER_FILE, self.num_images))

    def write(self, view: int, part: int, entries: Sequence[Entry], layout: list[Any]) -> None:
        """Write a file.

        Args:
            view: Which view.
            part: Which part of the images.
            entries: Those of its images.
            layout: As of :class:`~mmseg_eomt.engine.frozen_part.Features`.

        Raises:
            ValueError: If features or samples cannot be kept, with what to set.
        """
        kinds = {(entry.grid, *(tensor.shape for tensor in entry.tensors)) for entry in entries}
        if len(kinds) > 1:
            raise ValueError(DIFFERENT_SIZES)
        columns = [torch.stack(column) for column in zip(*(entry.tensors for entry in entries))]
        content = dict(
            tensors=[_narrow(column, DTYPES[self.dtype]) for column in columns],
            dtypes=[column.dtype for column in columns],
            layout=layout,
            grid=entries[0].grid,
            fields=_fields([entry.sample for entry in entries]),
            metas=[_plain(entry.sample.metainfo) for entry in entries],
        )
        with whole_file(self._path(view, part)) as new:
            torch.save(content, new)

    def read(self, index: int, view: int) -> Entry:
        """The view of an image; features are in the type that they are kept in."""
        row, content = index % PER_FILE, self.content(view, index // PER_FILE)
        sample = SegDataSample(metainfo=content['metas'][row])
        for name, values in content['fields'].items():
            value = values[row].clone()
            sample.set_data({name: PixelData(data=value if value.is_floating_point() else value.long())})
        # a worker process would hand over all of a file in place of a part
        return Entry([tensor[row].clone() for tensor in content['tensors']], content['grid'], sample)

    def content(self, view: int, part: int) -> dict[str, Any]:
        """What a file holds, its tensors mapped.

        Raises:
            ValueError: If it is damaged.
        """
        path = self._path(view, part)
        if path not in self._open:
            try:
                self._open[path] = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
            except Exception as error:
                raise ValueError(
                    f'{path} of the feature cache cannot be read: delete it and start again. ({error})'
                ) from error
        return self._open[path]

    def _path(self, view: int, part: int) -> Path:
        return self.folder / f'view{view}_{part:05d}.pt'


class CachedViews(Dataset):
    """Features in place of images, as a dataset for :class:`~mmseg_eomt.data.fixed_views.ViewSampler`.

    Args:
        store: Complete.
        metainfo: The image dataset's.
    """

    def __init__(self, store: FeatureStore, metainfo: dict[str, Any]) -> None:
        self.store = store
        self.metainfo = metainfo
        self.views = store.views

    def __len__(self) -> int:
        """Number of images."""
        return self.store.num_images

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """``features`` and ``data_samples`` of ``(index, view)``."""
        entry = self.store.read(*item)
        return dict(features=entry.tensors, data_samples=entry.sample)


def size_of(entry: Entry, dtype: str) -> int:
    """Bytes of an entry on disk."""
    width = DTYPES[dtype].itemsize
    features = sum(tensor.numel() * width for tensor in entry.tensors)
    return features + sum(value.numel() * value.element_size() for value in _fields([entry.sample]).values())


def check_room(folder: Path, needed: int, max_size: str) -> None:
    """Make sure that a folder has room, before anything is written.

    Args:
        folder: Of all caches; it need not exist.
        needed: Bytes.
        max_size: The most that it may hold, such as ``'50GB'``.

    Raises:
        ValueError: If it has not, with the sizes and what to change.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    held = folder_size(folder)
    free = shutil.disk_usage(place).free
    cure = 'lower views, crop smaller images, or give another dir'
    if held + needed > bytes_of(max_size):
        raise ValueError(
            f'The feature cache would need {gigabytes(needed)} in {folder}, which holds {gigabytes(held)} and may hold '
            f'max_size={max_size}: raise it, delete caches there that are not needed any more, {cure}.'
        )
    if needed > free:
        raise ValueError(
            f'The feature cache would need {gigabytes(needed)} in {folder}, and {gigabytes(free)} are free: {cure}.'
        )


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder, and in folders there."""
    return sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())


def _narrow(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    if not narrow.isfinite().all() and tensor.isfinite().all():
        raise ValueError(f"A feature of {float(tensor.abs().max()):.3g} is too large for float16: set dtype='float32'.")
    return narrow


def _fields(samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
    """The maps of labels of samples, (n, …) by name."""
    fields = {}
    for name, first in samples[0].items():
        if not isinstance(first, PixelData) or set(first.keys()) != {'data'}:
            raise ValueError(f'Features are cached with maps of labels alone, and the pipeline packs {name} too.')
        values = torch.stack([sample.get(name).data for sample in samples]).cpu()
        small = not values.is_floating_point() and int(values.min()) >= 0 and int(values.max()) < 256
        fields[name] = values.to(torch.uint8) if small else values
    return fields


def _plain(value: Any) -> Any:
    """Meta information in types that are read safely."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value] if isinstance(value, list) else tuple(_plain(part) for part in value)
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
