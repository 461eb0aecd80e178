"""Cut-outs and how one is laid into an image: turned, resized, its colours matched, its edge blended."""

from typing import NamedTuple

import cv2
import numpy as np

SOLID = 0.5  # an outlier is where alpha is above
NEIGHBOURHOOD = 0.5  # of a cut-out's sides, to each side: where colours are matched to


class Cutout(NamedTuple):
    """An outlier, cut out of where it was.

    Attributes:
        image: BGR (h, w, 3), uint8.
        alpha: (h, w), uint8 from 0 to 255 or float from 0 to 1.
        name: Its class or file, for reports.
    """

    image: np.ndarray
    alpha: np.ndarray
    name: str


class Piece:
    """A cut-out while it is brought into shape: its colours times alpha, so that what is transparent colours no edge.

    Args:
        pixels: Colours times alpha and alpha (h, w, 4), float32 from 0 to 1.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @classmethod
    def of(cls, cutout: Cutout) -> 'Piece':
        """The piece of a cut-out, trimmed to what is not transparent."""
        alpha = cutout.alpha.astype(np.float32) / (255 if cutout.alpha.dtype == np.uint8 else 1)
        colours = cutout.image.astype(np.float32) / 255 * alpha[..., None]
        return cls(np.dstack((colours, alpha))).trimmed()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[:2]
        return height, width

    @property
    def alpha(self) -> np.ndarray:
        """(h, w), from 0 to 1."""
        return self.pixels[..., 3]

    @property
    def solid(self) -> np.ndarray:
        """Where the outlier is (h, w), bool."""
        return self.alpha > SOLID

    def trimmed(self) -> 'Piece':
        """Without rows and columns that hold nothing of the outlier; empty where there is none."""
        rows, columns = (np.flatnonzero(self.solid.any(axis)) for axis in (1, 0))
        if not len(rows):
            return Piece(self.pixels[:0, :0])
        return Piece(self.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])

    def turned(self, degrees: float, flip: bool) -> 'Piece':
        """Mirrored, and turned about its middle."""
        pixels = np.ascontiguousarray(self.pixels[:, ::-1]) if flip else self.pixels
        if not (degrees and pixels.size):
            return Piece(pixels)
        height, width = self.size
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        cos, sin = np.abs(matrix[0, :2])
        new = int(np.ceil(width * cos + height * sin)), int(np.ceil(width * sin + height * cos))
        matrix[:, 2] = matrix[:, 2] + (np.array(new) - (width, height)) / 2
        return Piece(cv2.warpAffine(pixels, matrix, new, flags=cv2.INTER_LINEAR)).trimmed()

    def within(self, side: int) -> 'Piece':
        """Shrunk so that no side is longer than a number of pixels, so that what follows takes no longer than it must."""
        longest = max(self.size)
        if longest <= max(side, 1):
            return self
        height, width = (max(1, round(length * side / longest)) for length in self.size)
        return self.resized(height, width)

    def resized(self, height: int, width: int) -> 'Piece':
        """Of another size in pixels; with antialiasing where it shrinks."""
        smaller = height < self.size[0] or width < self.size[1]
        method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return Piece(cv2.resize(self.pixels, (width, height), interpolation=method))

    def matched(self, surroundings: np.ndarray, amount: float) -> 'Piece':
        """With colours that come closer to those of its surroundings: mean and spread of each channel of CIELAB.

        Args:
            surroundings: BGR (n, 3), uint8.
            amount: From 0, nothing, to 1, all of the way.
        """
        if not len(surroundings):
            return self
        own, theirs = _to_lab(self._colours()), _to_lab(surroundings[None].astype(np.float32) / 255)[0]
        inside = own[self.solid]
        spread = (theirs.std(0) / (inside.std(0) + 1e-3)).clip(0.5, 2)
        full = (own - inside.mean(0)) * spread + theirs.mean(0)
        colours = cv2.cvtColor(own + amount * (full - own), cv2.COLOR_LAB2BGR).clip(0, 1)
        return Piece(np.dstack((colours * self.alpha[..., None], self.alpha)))

    def _colours(self) -> np.ndarray:
        """BGR (h, w, 3), float32 from 0 to 1; black where it is transparent."""
        return self.pixels[..., :3] / np.maximum(self.alpha, 1e-6)[..., None]


def surroundings_of(image: np.ndarray, free: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Colours around a box, and in it.

    Args:
        image: BGR (H, W, 3), uint8.
        free: Which pixels count (H, W).
        box: Top, left, height and width in pixels.

    Returns:
        BGR (n, 3), uint8.
    """
    top, left, height, width = box
    y, x = (max(2, round(NEIGHBOURHOOD * side)) for side in (height, width))
    part = np.s_[max(0, top - y) : top + height + y, max(0, left - x) : left + width + x]
    return image[part][free[part]]


def lay(image: np.ndarray, piece: Piece, top: int, left: int, feather: int) -> tuple[np.ndarray, np.ndarray]:
    """Blend a piece into an image, in place.

    Args:
        image: BGR (H, W, 3), uint8; changed.
        piece: Whole inside of the image.
        top: Row of its first pixel.
        left: Column of its first pixel.
        feather: Pixels beyond its edge into which it fades.

    Returns:
        Where the outlier is, and where the image has changed around it: two masks (H, W), bool, that do not overlap.
    """
    height, width = piece.size
    pad = min(feather, top), min(feather, image.shape[0] - top - height)
    side = min(feather, left), min(feather, image.shape[1] - left - width)
    pixels = np.pad(piece.pixels, (pad, side, (0, 0)))
    solid = pixels[..., 3:] > SOLID
    if feather:
        kernel = (2 * feather + 1, 2 * feather + 1)
        soft = cv2.GaussianBlur(pixels, kernel, max(0.5, feather / 2), borderType=cv2.BORDER_CONSTANT)
        pixels = np.where(solid, pixels, soft)  # a thin thing would fade if it were blurred inside too
    alpha = np.where(pixels[..., 3:] < 1 / 255, 0, pixels[..., 3:])
    colours = pixels[..., :3] / pixels[..., 3:].clip(1e-6)
    part = np.s_[top - pad[0] : top + height + pad[1], left - side[0] : left + width + side[1]]
    mixed = image[part] + alpha * (255 * colours - image[part])
    image[part] = mixed.round().clip(0, 255).astype(np.uint8)
    outlier, ring = (np.zeros(image.shape[:2], bool) for _ in range(2))
    outlier[part] = solid[..., 0]
    ring[part] = ((alpha > 0) & ~solid)[..., 0]
    return outlier, ring


def _to_lab(colours: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(colours.clip(0, 1).astype(np.float32), cv2.COLOR_BGR2LAB)
