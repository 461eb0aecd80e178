"""Labels of other domains as files of Cityscapes' train ids.

Those that change here are files that the toolbox cannot read (SYNTHIA's 16-bit colours), or ids so many that mapping them at
each reading would take longer than reading (Mapillary's 66 or 124), or what everyone keeps as ``*_labelTrainIds.png`` (GTA5,
Cityscapes), so that files of other toolboxes serve too. UrbanSyn's one id is mapped as it is read; the others need nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmseg.datasets import CityscapesDataset
from PIL import Image

from mmseg_eomt.data.check import describe, in_threads
from mmseg_eomt.data.images import inspect_image
from mmseg_eomt.data.masks import count_values, read_mask
from mmseg_eomt.domains.label_maps import CITYSCAPES, CITYSCAPES_IDS, IGNORED, MAPILLARY, MAPILLARY_V2, SYNTHIA
from mmseg_eomt.whole import whole_file

SUFFIX = '_labelTrainIds.png'
AS_THEY_ARE = ('acdc', 'bdd100k', 'dark_zurich', 'nighttime_driving', 'urbansyn')
COLOURS = {tuple(colour): old for old, colour in zip(CITYSCAPES_IDS, CityscapesDataset.METAINFO['palette'])}


@dataclass(frozen=True)
class Layout:
    """Where a dataset has its labels, and what is in them.

    Attributes:
        patterns: Of label files below the dataset's folder.
        image: What to replace in the path of a label, and by what, for that of its image; as of :func:`re.sub`.
        table: Train ids of all ids that a label may hold.
        sixteen_bit: Whether ids are in the first channel of 16-bit colours.
    """

    patterns: tuple[str, ...]
    image: tuple[str, str]
    table: Mapping[int, int]
    sixteen_bit: bool = False


LAYOUTS = {
    'cityscapes': Layout(
        ('gt*/*/*/*_labelIds.png',), (r'^gt\w+/(.*)_gt\w+_labelIds\.png$', r'leftImg8bit/\1_leftImg8bit.png'), CITYSCAPES
    ),
    'gta5': Layout(('labels/*.png',), ('^labels', 'images'), CITYSCAPES),
    'synthia': Layout(('GT/LABELS/*.png',), ('^GT/LABELS', 'RGB'), SYNTHIA, sixteen_bit=True),
    'mapillary': Layout(
        ('*/labels/*.png', '*/v1.2/labels/*.png'), (r'(v1\.2/)?labels/(.*)png$', r'images/\2jpg'), MAPILLARY
    ),
    'mapillary_v2': Layout(('*/v2.0/labels/*.png',), (r'v2\.0/labels/(.*)png$', r'images/\1jpg'), MAPILLARY_V2),
}


@dataclass(frozen=True)
class Converted:
    """What a conversion has done.

    Attributes:
        written: Number of files.
        skipped: Number of those that were there.
        ignored: A sentence for each label that has another size than its image: all its pixels are ignored.
    """

    written: int
    skipped: int
    ignored: list[str]


def convert(name: str, root: str | Path, out: str | Path | None = None) -> Converted:
    """Write a dataset's labels as train ids, each file whole; what is there already is kept.

    Args:
        name: Of :data:`LAYOUTS`.
        root: Folder of the dataset, as it is downloaded.
        out: Where the files go, in the same folders as in ``root``. Default: beside the labels.

    Raises:
        ValueError: If the dataset is unknown or needs no conversion, there are no labels, or some cannot be used: the others
            are written.
    """
    if name in AS_THEY_ARE:
        raise ValueError(f'{name} is read as it is downloaded: see configs/_base_/domains/{name}.py.')
    if name not in LAYOUTS:
        raise ValueError(f'There is no dataset {name!r} to convert: choose one of {", ".join(LAYOUTS)}.')
    layout, root = LAYOUTS[name], Path(root)
    found = sorted(path for pattern in layout.patterns for path in root.glob(pattern) if not path.name.endswith(SUFFIX))
    if not found:
        raise ValueError(f'{root} holds no labels of {name}, which would be {" or ".join(layout.patterns)} there.')
    targets = {path: Path(out or root) / _new_name(path.relative_to(root)) for path in found}
    pending = [path for path in found if not targets[path].exists()]
    results = in_threads(lambda path: _convert(path, targets[path], root, layout), pending, f'Converting {name}', 'labels')
    problems = [result for result in results if isinstance(result, ValueError)]
    if problems:
        raise ValueError(describe(list(map(str, problems)), len(found)))
    return Converted(len(pending), len(found) - len(pending), [str(result) for result in results if result])


def _new_name(label: Path) -> Path:
    return label.with_name(f'{label.stem.removesuffix("_labelIds")}{SUFFIX}')


def _convert(label: Path, target: Path, root: Path, layout: Layout) -> ValueError | str | None:
    """Write one file; an error, or a note, is returned for the others to be written all the same."""
    try:
        ids, note = read_ids(label, layout), None
        train_ids = to_train_ids(ids, layout.table, label)
        image = root / re.sub(*layout.image, label.relative_to(root).as_posix())
        if image.is_file() and (size := inspect_image(image).size) != ids.shape:
            note = '{}: the label is {}×{} pixels, and its image {}×{}'.format(label, *ids.shape[::-1], *size[::-1])
            train_ids = np.full(size, IGNORED, np.uint8)
    except ValueError as error:
        return error
    with whole_file(target) as new:
        Image.fromarray(train_ids).save(new)
    return note


def read_ids(path: Path, layout: Layout) -> np.ndarray:
    """The ids in a label file (H, W).

    Raises:
        ValueError: If the file cannot be read, or holds something else.
    """
    if layout.sixteen_bit:  # which Pillow makes 8 of
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if values is None or values.ndim != 3 or values.dtype != np.uint16:
            raise ValueError(f'{path}: the label is not a PNG of 16-bit colours, as it is downloaded')
        return values[..., -1]  # blue, green, red
    values, _ = read_mask(path)
    if values.ndim == 2:
        return values
    if layout.table is not CITYSCAPES:
        raise ValueError(f'{path}: the label holds colours, not ids')
    red, green, blue = values.astype(np.int32).transpose(2, 0, 1)
    colours, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    ids = [COLOURS.get((int(colour) >> 16, int(colour) >> 8 & 255, int(colour) & 255), 0) for colour in colours]
    return np.array(ids, np.uint8)[inverse.reshape(values.shape[:2])]


def to_train_ids(ids: np.ndarray, table: Mapping[int, int], path: Path) -> np.ndarray:
    """Stored ids as train ids (H, W) uint8.

    Raises:
        ValueError: If one is not in the table.
    """
    unknown = [int(value) for value in count_values(ids)[0] if value not in table]
    if unknown:
        shown = ', '.join(map(str, unknown[:5])) + (', …' if len(unknown) > 5 else '')
        raise ValueError(f'{path}: id {shown} is none of those of the dataset (0 to {max(set(table) - {IGNORED})})')
    new_ids = np.full(max(table) + 1, IGNORED, np.uint8)
    new_ids[list(table)] = list(table.values())
    return new_ids[ids]
