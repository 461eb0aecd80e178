"""Outliers of COCO-style annotations, read without pycocotools."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.logging import print_log

from mmseg_eomt.anomaly.outliers.class_names import known_names
from mmseg_eomt.anomaly.outliers.compositing import Cutout
from mmseg_eomt.anomaly.outliers.sources import OUTLIER_SOURCES, SMALL, OutlierSource
from mmseg_eomt.data.images import Reader

TRAFFIC = (  # of COCO: what street scenes have classes for
    *('person', 'rider', 'bicycle', 'car', 'motorcycle', 'bus', 'train', 'truck'),
    *('traffic light', 'stop sign', 'parking meter'),
)

READER = Reader('color_ignore_orientation')  # annotations are of the pixels as they are stored


@OUTLIER_SOURCES.register_module()
class CocoInstances(OutlierSource):
    """Objects of annotations in the layout of COCO's ``instances_train2017.json``, with no preparation.

    Crowds and small objects are skipped. Images that are not in the folder are skipped too, so that a part of a dataset will
    do. What is kept of the annotations lies in one array, which worker processes share.

    Args:
        images: Folder of the images.
        annotations: The JSON file.
        exclude: Names of categories to leave out, whatever their spelling. Default: the traffic of COCO, which street scenes
            have classes for: person, rider, bicycle, car, motorcycle, bus, train, truck, traffic light, stop sign, parking
            meter.
        min_area: Smallest object in pixels. Default: 1024, which COCO calls medium.

    Raises:
        ValueError: If a file or folder is missing, the file is no such JSON, or no object is left.
    """

    def __init__(self, images: str, annotations: str, exclude: Sequence[str] = TRAFFIC, min_area: int = SMALL) -> None:
        if not os.path.isdir(images):
            raise ValueError(f'CocoInstances: there is no folder {images} of images.')
        content = _read_json(annotations)
        names = {category['id']: category['name'] for category in content['categories']}
        excluded = set(known_names(names.values(), exclude))
        files = {image['id']: (image['file_name'], image['height'], image['width']) for image in content['images']}
        there = {path for path, *_ in files.values() if os.path.isfile(os.path.join(images, path))}
        kept = [
            one
            for one in content['annotations']
            if names[one['category_id']] not in excluded
            and not one.get('iscrowd')
            and one.get('area', min_area) >= min_area
            and files[one['image_id']][0] in there
        ]
        if not kept:
            raise ValueError(
                f'CocoInstances: no object of {annotations} is left: {len(there)} of its {len(files)} images are in '
                f'{images}, and {", ".join(sorted(excluded)) or "no category"} is excluded.'
            )
        if len(there) < len(files):
            print_log(f'CocoInstances: {len(there)} of the {len(files)} images of {annotations} are in {images}.', 'current')
        self.images = images
        self.classes = tuple(names[i] for i in sorted({one['category_id'] for one in kept}))
        self._index = _Packed((names[o['category_id']], *files[o['image_id']], o['segmentation']) for o in kept)

    def __len__(self) -> int:
        return len(self._index)

    def draw(self, rng: np.random.Generator, image_path: str | None = None) -> Cutout:
        """See :class:`.OutlierSource`."""
        name, file, height, width, segmentation = self._index[int(rng.integers(len(self)))]
        path = Path(self.images) / file
        image = READER.read(path)
        if image.shape[:2] != (height, width):
            raise ValueError(
                f'{path}: the image is {image.shape[1]}×{image.shape[0]} pixels, and {width}×{height} in the annotations.'
            )
        mask = decode_segmentation(segmentation, height, width)
        left, top, wide, high = cv2.boundingRect(mask)
        box = slice(top, top + high), slice(left, left + wide)
        return Cutout(image[box], 255 * mask[box], name)


class _Packed:
    """A sequence of JSON values in two arrays: forked processes share their memory, which they would not of many objects."""

    def __init__(self, values: Iterable[Any]) -> None:
        texts = [json.dumps(value, separators=(',', ':')).encode() for value in values]
        self.ends = np.cumsum([len(text) for text in texts])
        self.bytes = np.frombuffer(b''.join(texts), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        start = self.ends[index - 1] if index else 0
        return json.loads(self.bytes[start : self.ends[index]].tobytes())


def decode_segmentation(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """The mask (H, W), uint8 of 0 and 1, of polygons or of run lengths, compressed or not.

    Args:
        segmentation: Lists of x, y, x, y, …; or ``dict(counts=…, size=[H, W])``.
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: If run lengths do not fill the mask.

    Source: the formats as COCO's API documents them.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), np.uint8)
        for polygon in segmentation:  # each by itself: where two overlap, fillPoly would leave a hole
            cv2.fillPoly(mask, [np.round(np.reshape(polygon, (-1, 2))).astype(np.int32)], 1)
        return mask
    counts = segmentation['counts']
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError(f'Run lengths of {sum(runs)} pixels do not fill a mask of {width}×{height}.')
    values = np.arange(len(runs), dtype=np.uint8) % 2  # of nothing first, then of the object, and so on in turn
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)  # column by column


def decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits per character, low ones first; from the fourth on, differences.

    A difference is to the run before the last one, of the same kind.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text.encode('ascii'):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the number's last character
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    return numbers


def _read_json(path: str) -> dict[str, list[dict]]:
    """Annotations with the three lists that are needed."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f'CocoInstances: the annotations {path} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise ValueError(f'CocoInstances: {path} is no JSON file: {error}') from error
    missing = {'images', 'annotations', 'categories'} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"CocoInstances: {path} has no list of {', '.join(sorted(missing))}, as COCO's instances have.")
    return content
