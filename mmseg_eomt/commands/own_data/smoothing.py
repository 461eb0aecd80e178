"""Masks that were saved as pictures: values between those of two regions, along their border."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mmseg_eomt.commands.own_data.mask_stats import MaskStats, one_value, totals
from mmseg_eomt.data.masks import read_mask

NUM_MASKS = 32  # those of the most values show it best
MIN_VALUES, MIN_FRACTION = 3, 0.5  # of all values
MANY, BETWEEN_IF_MANY, BETWEEN_IF_FEW = 10, 0.25, 0.8


def refuse_smoothed(stats: Sequence[MaskStats]) -> None:
    """Make sure that the ids in masks, each of which is to be a class, do not come from smoothing.

    Colours are not looked at: there are too many then to be taken for classes.

    Raises:
        ValueError: If they do, with some of the values and the mask of most values.
    """
    occurring = totals(stats)
    if stats[0].colours or len(occurring) < MIN_VALUES + 2:
        return
    paths = [one.path for one in sorted(stats, key=lambda one: len(one.pixels), reverse=True)[:NUM_MASKS]]
    found = smoothed_values(one_value(read_mask(path)[0], colours=False) for path in paths)
    if found:
        shown = ', '.join(map(str, found[:5])) + (', …' if len(found) > 5 else '')
        raise ValueError(
            f'{len(found)} of the {len(occurring)} values in the masks ({shown}) are only on borders between a lower and a '
            f'higher value, most of them in {paths[0]}: these masks were saved with smoothed edges (antialiasing, '
            f'resizing with interpolation, JPEG). Give masks with one value per class, or --classes with the value of each.'
        )


def smoothed_values(masks: Iterable[np.ndarray]) -> list[int]:
    """Values that are no classes but come from smoothing, such as antialiasing, resizing with interpolation, or JPEG.

    Such a value nowhere fills 3×3 pixels, is between two that do, and its pixels lie between a lower and a higher one: 97 %
    of them or more after antialiasing or linear interpolation, 29 % after JPEG at quality 95. Thin objects and small
    instances lie on one other value instead (5 % at most, the single objects of CamVid). It is more only where classes are a
    pixel wide in every mask, as CamVid's at 20×15, and these are few: a few values have to be clearer than many.

    Args:
        masks: Some of a dataset, integers (H, W).

    Returns:
        The values, if they are at least half of all and at least three; else nothing.
    """
    pixels, between, filling = Counter[int](), Counter[int](), set[int]()
    for mask in masks:
        values, indices = np.unique(mask, return_inverse=True)
        all_pixels, ramps, flat = _count(indices.reshape(mask.shape), len(values))
        pixels.update(dict(zip(values.tolist(), all_pixels.tolist())))
        between.update(dict(zip(values.tolist(), ramps.tolist())))
        filling.update(values[flat > 0].tolist())
    if len(filling) < 2:
        return []
    found = sorted(value for value in pixels if value not in filling)
    inside = [value for value in found if min(filling) < value < max(filling)]
    enough = len(inside) >= MIN_VALUES and len(found) >= MIN_FRACTION * len(pixels)
    fraction = sum(between[value] for value in found) / max(1, sum(pixels[value] for value in found))
    return inside if enough and fraction >= (BETWEEN_IF_MANY if len(inside) >= MANY else BETWEEN_IF_FEW) else []


def _count(mask: np.ndarray, num_values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each number in a mask, off its margin: all, those between a lower and a higher one, those amid 3×3 equal."""
    middle = mask[1:-1, 1:-1]
    height, width = middle.shape
    around = [mask[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    flat = np.all([part == middle for part in around], axis=0)
    pairs = ((around[1], around[7]), (around[3], around[5]))  # above and below, left and right
    ramps = [((a < middle) & (middle < b)) | ((b < middle) & (middle < a)) for a, b in pairs]
    everywhere, on_ramps, in_flat = (
        np.bincount(pixels.ravel(), minlength=num_values) for pixels in (middle, middle[ramps[0] | ramps[1]], middle[flat])
    )
    return everywhere, on_ramps, in_flat
