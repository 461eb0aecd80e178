"""Where pasted outliers come from: cut-outs, images with masks, or a labelled dataset."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import Registry
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_eomt.anomaly.outliers.compositing import Cutout
from mmseg_eomt.data.images import DEFAULT_READER, IMAGE_TYPES
from mmseg_eomt.data.masks import read_mask

OUTLIER_SOURCES = Registry('outlier source', scope='mmseg', locations=['mmseg_eomt.anomaly'])
TRIES = 20  # images that are looked at for an outlier, before a draw is given up
NUM_LOOKED_AT = 20  # masks of a folder that are read when a source is built
IGNORED = 255  # of masks
SMALL = 32 * 32  # pixels


class OutlierSource(ABC):
    """What :class:`.PasteOutliers` draws outliers from.

    A source has no state that draws change: the same random numbers give the same outlier.

    Attributes:
        classes: Names of what it holds, if it knows them; compared with the classes of the model.
    """

    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Number of images or cut-outs to draw from."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout | None:
        """An outlier.

        Args:
            rng: Source of all that is random in it.
            image_path: The image that it will be pasted into.

        Returns:
            A cut-out, or None if none was found in :data:`TRIES` images.

        Raises:
            ValueError: If a file cannot be read.
        """


@OUTLIER_SOURCES.register_module()
class CutoutFolder(OutlierSource):
    """Cut-outs with an alpha channel: PNG or WebP files of one outlier each.

    Args:
        folder: Where they are; folders in it are searched too.

    Raises:
        ValueError: If the folder is missing or holds no such file, or a file has no alpha channel.
    """

    def __init__(self, folder: str) -> None:
        self.files = [file for file in image_files(folder) if file.lower().endswith(('.png', '.webp'))]
        if not self.files:
            raise ValueError(f'CutoutFolder: {folder} holds no .png or .webp file with a cut-out.')
        for file in self.files:
            _check_alpha(file)

    def __len__(self) -> int:
        return len(self.files)

    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout:
        """See :class:`OutlierSource`."""
        file = self.files[rng.integers(len(self.files))]
        try:
            with Image.open(file) as image:
                pixels = np.array(image.convert('RGBA'))
        except Exception as error:  # decoders raise whatever damaged bytes lead them to
            raise ValueError(f'{file}: the cut-out cannot be read ({error}).') from error
        if pixels[..., 3].max() < 128:
            raise ValueError(f'{file}: the cut-out is transparent everywhere: delete it, or check how it was saved.')
        return Cutout(pixels[..., 2::-1], pixels[..., 3], Path(file).stem)


@OUTLIER_SOURCES.register_module()
class MaskedImages(OutlierSource):
    """Images with masks of the same name, such as ``images/7.jpg`` and ``masks/7.png``. Each region is an outlier.

    A region is what hangs together in a mask and has one value.

    Args:
        images: Folder; folders in it are searched too.
        masks: Folder with the same folders and names, and any suffix.
        ids: Values of outliers in the masks. Default: None, all but 0, which is background, and 255, which is ignored.
        min_area: Smallest region in pixels. Default: 1024.

    Raises:
        ValueError: If a folder is missing or empty, no image has a mask, or the masks hold no outlier.
    """

    def __init__(self, images: str, masks: str, ids: Sequence[int] | None = None, min_area: int = SMALL) -> None:
        mask_of = {os.path.splitext(os.path.relpath(file, masks))[0]: file for file in image_files(masks)}
        stems = {file: os.path.splitext(os.path.relpath(file, images))[0] for file in image_files(images)}
        self.pairs = [(file, mask_of[stem]) for file, stem in stems.items() if stem in mask_of]
        if not self.pairs:
            first = next(iter(stems.values()), '<name>')
            raise ValueError(f'MaskedImages: no image of {images} has a mask of its name in {masks}, such as {first}.png.')
        self.ids = None if ids is None else [int(i) for i in ids]
        self.min_area = min_area
        values = {int(v) for _, mask in self.pairs[:NUM_LOOKED_AT] for v in np.unique(self._read_mask(mask))}
        if self.ids is None and values <= {0, IGNORED}:
            raise ValueError(
                f'MaskedImages: the first masks of {masks} hold {sorted(values)} alone, and 255 means "ignored": give '
                f'ids=[255] if it marks outliers.'
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout | None:
        """See :class:`OutlierSource`."""
        for i in rng.integers(len(self.pairs), size=TRIES):
            path, mask = self.pairs[i]
            labels = self._read_mask(mask)
            ids = self.ids or [int(value) for value in np.unique(labels) if value not in (0, IGNORED)]
            found = cut_region(labels, ids, self.min_area, rng)
            if found:
                image = DEFAULT_READER.read(Path(path))
                if image.shape[:2] != labels.shape:
                    raise ValueError(f'{mask}: the mask has the size {labels.shape}, its image {path} {image.shape[:2]}.')
                return Cutout(image[found[1]], found[2], Path(path).stem)
        return None

    @staticmethod
    def _read_mask(path: str) -> np.ndarray:
        values, _ = read_mask(path)
        if values.ndim == 3:
            raise ValueError(f'{path}: the mask holds colours, not ids: save it as one channel.')
        return values


@OUTLIER_SOURCES.register_module()
class DatasetRegions(OutlierSource):
    """Regions of some classes of any dataset of the toolbox. Each region that hangs together is an outlier.

    Args:
        dataset: As in a dataloader: ``dict(type='ADE20KDataset', data_root=…, data_prefix=…)``. It needs no pipeline.
        classes: Names of those of its classes that are outliers.
        min_area: Smallest region in pixels. Default: 1024.

    Raises:
        ValueError: If the dataset is empty or has no such class.
    """

    def __init__(self, dataset: dict[str, Any], classes: Sequence[str], min_area: int = SMALL) -> None:
        self.dataset = build_dataset(dataset, ['LoadImageFromFile', 'LoadAnnotations'], 'DatasetRegions')
        names = list(self.dataset.metainfo.get('classes') or ())
        wrong = [name for name in classes if name not in names]
        if wrong or not classes:
            raise ValueError(
                f'DatasetRegions: classes takes names of classes of {dataset.get("type")}, got {wrong or classes}; it has '
                f'{", ".join(names)}.'
            )
        self.classes = tuple(classes)
        self.ids = [names.index(name) for name in classes]
        self.min_area = min_area

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout | None:
        """See :class:`OutlierSource`."""
        for i in rng.integers(len(self.dataset), size=TRIES):
            sample = self.dataset.pipeline(self.dataset.get_data_info(int(i)))
            found = cut_region(sample['gt_seg_map'], self.ids, self.min_area, rng)
            if found:
                return Cutout(sample['img'][found[1]], found[2], self.classes[self.ids.index(found[0])])
        return None


def cut_region(
    labels: np.ndarray, ids: Sequence[int], min_area: int, rng: np.random.Generator
) -> tuple[int, tuple[slice, slice], np.ndarray] | None:
    """A region of one of some ids: the id first, then the region, each with equal probability.

    Args:
        labels: (H, W).
        ids: Those to choose from.
        min_area: Smallest region in pixels.
        rng: Source of the choice.

    Returns:
        The id, where the region is, and its alpha (h, w), uint8; None if there is no region.
    """
    present = [value for value in ids if (labels == value).any()]
    for value in rng.permutation(present) if present else ():
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8), connectivity=8)
        large = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] >= min_area]
        if large:
            i = large[rng.integers(len(large))]
            left, top, width, height = stats[i, :4].tolist()
            box = slice(top, top + height), slice(left, left + width)
            return int(value), box, np.where(parts[box] == i, 255, 0).astype(np.uint8)
    return None


def build_dataset(config: dict[str, Any], steps: Sequence[str], source: str) -> BaseSegDataset:
    """A dataset of the toolbox with a pipeline of its own.

    Args:
        config: As in a dataloader; its pipeline is not used.
        steps: Names of the pipeline's transforms.
        source: Of outliers, for messages.

    Raises:
        ValueError: If it has no images.
    """
    try:
        dataset = DATASETS.build({**config, 'pipeline': [dict(type=step) for step in steps]})
        if len(dataset):
            return dataset
        reason = 'the folder is empty'
    except (AssertionError, FileNotFoundError, ValueError) as error:  # ValueError for no images, since they are concatenated
        reason = str(error)
    raise ValueError(f'{source}: {config.get("type")} finds no images ({reason}): check its data_root and data_prefix.')


def image_files(folder: str) -> list[str]:
    """Image files in a folder and the folders in it, in order.

    Raises:
        ValueError: If the folder is missing.
    """
    if not os.path.isdir(folder):
        raise ValueError(f'There is no folder {folder} to take outliers from: check the path in the config.')
    return sorted(_walk(folder))


def _walk(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMAGE_TYPES) and not name.startswith('.'):
                yield os.path.join(parent, name)


def _check_alpha(file: str) -> None:
    """Raise a ValueError for a file that is no image, or has no alpha channel; only its head is read."""
    try:
        with Image.open(file) as image:
            transparent = 'A' in image.getbands() or 'transparency' in image.info
    except Exception as error:  # as in CutoutFolder.draw
        raise ValueError(f'{file}: the cut-out cannot be read ({error}).') from error
    if not transparent:
        raise ValueError(f'{file}: a cut-out needs an alpha channel, and this file has none: save it as RGBA.')
