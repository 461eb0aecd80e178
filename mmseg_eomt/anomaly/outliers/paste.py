"""The transform that pastes outliers into training images."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from mmseg.datasets import CityscapesDataset
from mmseg.registry import TRANSFORMS

from mmseg_eomt.anomaly.outliers.class_names import canonical, known_names
from mmseg_eomt.anomaly.outliers.compositing import Cutout, Piece, lay, surroundings_of
from mmseg_eomt.anomaly.outliers.placement import Ground, Placement, Spot
from mmseg_eomt.anomaly.outliers.sources import OUTLIER_SOURCES

IGNORED = 255  # label of the ring around an outlier
OFTEN, ENOUGH = 0.2, 50  # fraction of outliers without a place that is worth a warning, and the number to know it


@TRANSFORMS.register_module()
class PasteOutliers(BaseTransform):
    """Paste outliers into a training image, and label them.

    It stands after ``LoadAnnotations`` and before everything that changes colours or sizes, so that the outlier shares the
    light of the scene. An outlier gets ``label`` where its alpha is above one half. Into the few pixels around it, it fades;
    they are labelled 255, which is ignored. Nothing else changes. An outlier is not pasted over another one.

    On the ground an outlier stands with its lowest quarter. With ``perspective``, its size there falls to zero at the
    horizon, the upper end of the ground in the label map.

    The transform draws one number of NumPy's global generator per image, whatever is pasted, and keeps no state that
    changes what it does.

    Args:
        source: What to paste: ``dict(type='TrainingPatches')``, which needs no data, or one of :class:`.CutoutFolder`,
            :class:`.MaskedImages`, :class:`.CocoInstances` and :class:`.DatasetRegions`.
        prob: Probability that an image gets outliers. Default: 0.1.
        number: Fewest and most outliers of such an image. Default: (1, 3).
        size: Smallest and largest length of the longer side, as a fraction of the image's height, drawn log-uniformly; with
            ``perspective``, that in the lowest row. Default: (0.04, 0.5).
        where: ``'road'``, which is the classes ``road`` and ``sidewalk``; ``'any'``; or ids or names of the classes on which
            outliers stand. Default: ``'road'``.
        any_prob: Probability that an outlier is pasted anywhere all the same. Default: 0.3.
        perspective: Whether outliers on the ground are smaller where it is further away. Default: True.
        feather: Pixels around an outlier into which it fades. Default: 2.
        colour_match: Probability that an outlier's colours come closer to those around it. Default: 0.5.
        flip: Probability that an outlier is mirrored. Default: 0.5.
        rotation: Largest turn in degrees, to either side. Default: 10.
        min_pixels: Smallest outlier. Default: 64.
        retries: How often a place is drawn for an outlier before it is given up. Default: 20.
        label: Label id of outliers: ``outlier_index`` of :class:`.EoMTAnomalyHead`. Default: 254.
        known_classes: Names of the model's classes, in the order of their ids. Default: None, those of Cityscapes.
        allow_known: Whether the source may hold classes that the model knows. Default: False.

    Modifies ``img`` (H, W, 3), uint8 BGR, and ``gt_seg_map`` (H, W). Adds ``outliers``: ``placed``, a list of each outlier's
    name, longer side in pixels and row of its foot, and ``failed``, the number of those without a place. ``PackSegInputs``
    drops it; ``tools/preview_outliers.py`` sums it up. A process logs both sums after 100 outliers, 1,000 and so on; one
    that finds no place for more than a fifth warns once.

    Raises:
        ValueError: If an argument is out of its range, the source is not there, the model knows classes of the source, or
            the sample has no label map.
    """

    def __init__(
        self,
        source: dict[str, Any],
        prob: float = 0.1,
        number: tuple[int, int] = (1, 3),
        size: tuple[float, float] = (0.04, 0.5),
        where: str | Sequence[int | str] = 'road',
        any_prob: float = 0.3,
        perspective: bool = True,
        feather: int = 2,
        colour_match: float = 0.5,
        flip: float = 0.5,
        rotation: float = 10.0,
        min_pixels: int = 64,
        retries: int = 20,
        label: int = 254,
        known_classes: Sequence[str] | None = None,
        allow_known: bool = False,
    ) -> None:
        for name, value in dict(prob=prob, any_prob=any_prob, colour_match=colour_match, flip=flip).items():
            _check(0 <= value <= 1, name, value, 'a probability from 0 to 1')
        whole = _is_range(number) and all(isinstance(n, int) and n > 0 for n in number)
        _check(whole, 'number', number, 'the fewest and most outliers, such as (1, 3)')
        _check(_is_range(size) and size[0] > 0 and size[1] <= 1, 'size', size, 'two fractions above 0, such as (0.04, 0.5)')
        _check(0 <= feather <= 32 and feather == int(feather), 'feather', feather, 'a number of pixels from 0 to 32')
        _check(0 <= rotation <= 180, 'rotation', rotation, 'degrees from 0 to 180')
        _check(min_pixels >= 1, 'min_pixels', min_pixels, 'a number from 1 on')
        _check(retries >= 1, 'retries', retries, 'a number from 1 on')
        _check(0 <= label <= 255 and label != IGNORED, 'label', label, 'an id from 0 to 254; 255 is ignored')
        self.known_classes = tuple(CityscapesDataset.METAINFO['classes'] if known_classes is None else known_classes)
        _check(label >= len(self.known_classes), 'label', label, f'no id of a class (0 to {len(self.known_classes) - 1})')
        ground_ids = _ground_ids(where, self.known_classes)
        self.source = OUTLIER_SOURCES.build(source)
        known = known_names(self.source.classes, self.known_classes)
        if known and not allow_known:
            raise ValueError(
                f'PasteOutliers: the model knows {", ".join(known)} of {source["type"]}, which would be outliers and '
                f'classes at once: exclude them there, give known_classes if the model has others, or set allow_known=True.'
            )
        self.prob, self.number, self.label = prob, (int(number[0]), int(number[1])), label
        self.placement = Placement((size[0], size[1]), ground_ids, any_prob, perspective, min_pixels, retries, label)
        self.flip, self.rotation, self.colour_match, self.feather = flip, rotation, colour_match, int(feather)
        self._num_tried = self._num_failed = 0  # of this process, for the warning
        self._warned = False

    def transform(self, results: dict) -> dict:
        """Paste into ``results['img']`` and ``results['gt_seg_map']``."""
        _check_sample(results)
        rng = np.random.default_rng(np.random.randint(2**31))
        if rng.random() >= self.prob:
            return results
        image, labels = results['img'].copy(), results['gt_seg_map'].copy()
        ground = Ground(labels, self.placement.ground_ids)
        number = int(rng.integers(self.number[0], self.number[1] + 1))
        placed = []
        for _ in range(number):
            cutout = self.source.draw(rng, results.get('img_path'))
            spot = self._find_spot(rng, cutout, labels, ground) if cutout else None
            if cutout and spot:
                self._paste(rng, spot, image, labels)
                placed.append(dict(name=cutout.name, side=max(spot.piece.size), foot=spot.foot, on_ground=spot.on_ground))
        self._count(number, number - len(placed))
        results.update(img=image, gt_seg_map=labels, outliers=dict(placed=placed, failed=number - len(placed)))
        return results

    def _find_spot(self, rng: np.random.Generator, cutout: Cutout, labels: np.ndarray, ground: Ground) -> Spot | None:
        """Turn a cut-out and look for a place."""
        piece = Piece.of(cutout).within(round(self.placement.size[1] * len(labels)))
        degrees, mirrored = rng.uniform(-self.rotation, self.rotation), rng.random() < self.flip
        return self.placement.find(rng, piece.turned(degrees, mirrored), labels, ground)

    def _paste(self, rng: np.random.Generator, spot: Spot, image: np.ndarray, labels: np.ndarray) -> None:
        """Change the image and its labels."""
        piece = spot.piece
        if rng.random() < self.colour_match:
            around = surroundings_of(image, labels != self.label, (spot.top, spot.left, *piece.size))
            piece = piece.matched(around, rng.uniform(0.3, 1))
        outlier, ring = lay(image, piece, spot.top, spot.left, self.feather)
        labels[ring & (labels != self.label)] = IGNORED  # an earlier outlier stays one
        labels[outlier] = self.label

    def _count(self, tried: int, failed: int) -> None:
        """Count, log the sum now and then, and warn once if too many outliers find no place."""
        logged = len(str(self._num_tried))
        self._num_tried += tried
        self._num_failed += failed
        if self._num_tried >= ENOUGH and self._num_failed > OFTEN * self._num_tried and not self._warned:
            self._warned = True
            print_log(
                f'PasteOutliers found no place for {self._num_failed} of {self._num_tried} outliers. '
                f"tools/preview_outliers.py shows where they go; smaller sizes, more retries or where='any' help.",
                'current',
                logging.WARNING,
            )
        if len(str(self._num_tried)) > max(logged, 2):  # at 100, 1,000, 10,000, …
            print_log(
                f'PasteOutliers: {self._num_tried} outliers in process {os.getpid()}, {self._num_failed} without a place.',
                'current',
            )

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(source={type(self.source).__name__}, prob={self.prob}, number={self.number}, '
            f'size={self.placement.size}, label={self.label})'
        )


def _check(right: bool, name: str, value: Any, expected: str) -> None:
    if not right:
        raise ValueError(f'PasteOutliers: {name} must be {expected}, got {value!r}.')


def _is_range(values: Any) -> bool:
    return isinstance(values, Sequence) and len(values) == 2 and values[0] <= values[1]


def _ground_ids(where: str | Sequence[int | str], classes: Sequence[str]) -> list[int]:
    """Label ids that outliers stand on; none for anywhere."""
    names = list(map(canonical, classes))
    if isinstance(where, str):
        _check(where in ('road', 'any'), 'where', where, "'road', 'any', or a list of classes")
        ids = [i for i, name in enumerate(names) if name in ('road', 'sidewalk')]
        _check(where == 'any' or bool(ids), 'where', where, f'ids or names of {", ".join(classes)}, which has no road')
        return ids if where == 'road' else []
    _check(len(where) > 0, 'where', where, "'road', 'any', or a list of classes")
    for one in where:
        good = one in range(len(classes)) if isinstance(one, int) else canonical(one) in names
        _check(good, 'where', one, f'ids or names of {", ".join(classes)}')
    return [one if isinstance(one, int) else names.index(canonical(one)) for one in where]


def _check_sample(results: dict) -> None:
    image, labels = results['img'], results.get('gt_seg_map')
    path = results.get('img_path') or 'an image'
    if labels is None:
        raise ValueError(f'PasteOutliers needs the label map of {path}: put it after LoadAnnotations in the pipeline.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'PasteOutliers needs an image (H, W, 3) of uint8, and {path} is {image.shape} of {image.dtype}.')
    if image.shape[:2] != labels.shape:
        raise ValueError(f'PasteOutliers: {path} is {image.shape[:2]}, and its label map {labels.shape}.')
