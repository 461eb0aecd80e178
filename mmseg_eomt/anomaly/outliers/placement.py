"""Where a pasted outlier goes and how large it is there: on the ground in perspective, or anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmseg_eomt.anomaly.outliers.compositing import Piece

FOOT, STANDS = 0.25, 0.8  # lowest fraction of an outlier's height, and how much of it must lie on the ground
STRAY = 0.005  # fraction of the ground's pixels that may lie above the horizon by an error of the mask


class Spot(NamedTuple):
    """Where an outlier goes.

    Attributes:
        piece: Of the size that it has there.
        top: Row of its first pixel.
        left: Column of its first pixel.
        on_ground: Whether it stands on the ground.
    """

    piece: Piece
    top: int
    left: int
    on_ground: bool

    @property
    def foot(self) -> int:
        """Row of its last pixel."""
        return self.top + self.piece.size[0] - 1

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns."""
        height, width = self.piece.size
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Ground:
    """The ground of an image: where outliers may stand, and how far away each place is.

    Args:
        labels: (H, W).
        ids: Labels that are ground.
    """

    def __init__(self, labels: np.ndarray, ids: Sequence[int]) -> None:
        self.mask = np.isin(labels, ids)
        self.places = np.flatnonzero(self.mask)
        self.height, self.width = labels.shape
        above = self.mask.sum(1).cumsum()
        self.horizon = int(np.searchsorted(above, STRAY * above[-1], side='right'))

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Row and column of a place, each with equal probability."""
        row, column = divmod(int(self.places[rng.integers(len(self.places))]), self.width)
        return row, column

    def scale(self, row: int) -> float:
        """Size of a thing that stands in a row, with that in the lowest row as 1: it falls to 0 at the horizon."""
        return max(0.0, (row - self.horizon) / max(1, self.height - 1 - self.horizon))


@dataclass(frozen=True)
class Placement:
    """How places are drawn: arguments of :class:`.PasteOutliers`.

    Attributes:
        size: Smallest and largest length of the longer side, as a fraction of the image's height.
        ground_ids: Labels that outliers stand on; none for anywhere.
        any_prob: Probability that one is placed anywhere all the same.
        perspective: Whether they are smaller where the ground is further away.
        min_pixels: Smallest outlier.
        retries: How often a place is drawn.
        label: Of outliers that are there already, which are not covered.
    """

    size: tuple[float, float]
    ground_ids: Sequence[int]
    any_prob: float
    perspective: bool
    min_pixels: int
    retries: int
    label: int

    def find(self, rng: np.random.Generator, piece: Piece, labels: np.ndarray, ground: Ground) -> Spot | None:
        """A place for an outlier, or None.

        Args:
            rng: Source of all that is random.
            piece: The outlier, of any size; it may be empty.
            labels: (H, W).
            ground: Of the labels.
        """
        on_ground = bool(self.ground_ids) and rng.random() >= self.any_prob
        if not piece.pixels.size or (on_ground and not len(ground.places)):
            return None
        for _ in range(self.retries):
            spot = self._draw(rng, piece, labels.shape, ground if on_ground else None)
            if spot and self._fits(spot, labels, ground):
                return spot
        return None

    def _draw(self, rng: np.random.Generator, piece: Piece, shape: tuple[int, ...], ground: Ground | None) -> Spot | None:
        """A place, if the outlier is inside of the image there and not too small."""
        side = float(np.exp(rng.uniform(*np.log(self.size)))) * shape[0]
        place = ground.draw(rng) if ground else None
        if ground and place and self.perspective:
            side *= ground.scale(place[0])
        height, width = (max(1, round(side * length / max(piece.size))) for length in piece.size)
        if place:
            top, left = place[0] - height + 1, place[1] - width // 2
        else:
            top, left = (int(rng.integers(max(1, whole - part + 1))) for whole, part in zip(shape, (height, width)))
        if height * width < self.min_pixels or top < 0 or not 0 <= left <= shape[1] - width:
            return None
        return Spot(piece.resized(height, width), top, left, place is not None)

    def _fits(self, spot: Spot, labels: np.ndarray, ground: Ground) -> bool:
        """Whether an outlier is large enough there, covers no other, and stands on the ground if it should."""
        solid = spot.piece.solid
        if solid.sum() < self.min_pixels or (labels[spot.box] == self.label)[solid].any():
            return False
        if not spot.on_ground:
            return True
        low = round(len(solid) * (1 - FOOT))
        foot, under = solid[low:], ground.mask[spot.box][low:]
        return bool(foot.any() and (under & foot).sum() >= STANDS * foot.sum())
