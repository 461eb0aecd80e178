"""What each mask holds, before its values have a meaning: ids or colours, and how many pixels of each."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmseg_eomt.data.masks import count_values, read_pair

Totals = dict[int, tuple[int, int]]  # pixels and images of each value


@dataclass(frozen=True)
class MaskStats:
    """What an image and its mask hold.

    Attributes:
        path: Of the mask.
        size: Height and width in pixels.
        pixels: Number of pixels of each value: an id, or a colour as 0xRRGGBB.
        colours: Whether the values are colours. Shades of grey in three channels are ids.
        channels: Of the file, 1 or 3.
        palette: Colours of a palette file, r, g, b, r, g, …, or None.
        orientation: The Exif orientation that the reader applies to the image, 1 for none.
    """

    path: Path
    size: tuple[int, int]
    pixels: dict[int, int]
    colours: bool = False
    channels: int = 1
    palette: list[int] | None = None
    orientation: int = 1


def read_stats(image: Path, mask: Path) -> MaskStats:
    """Read a pair.

    Raises:
        ValueError: If a file cannot be used or their sizes differ, in a sentence that begins with the file.
    """
    (size, orientation), values, palette = read_pair(image, mask)
    if values.dtype.kind not in 'uib':
        raise ValueError(f'{mask}: the mask holds numbers with fractions ({values.dtype}), not ids or colours')
    channels = 1 if values.ndim == 2 else 3
    colours = channels == 3 and bool((values != values[..., :1]).any())
    found, counts = count_values(one_value(values, colours))
    return MaskStats(mask, size, dict(zip(found.tolist(), counts.tolist())), colours, channels, palette, orientation)


def one_value(mask: np.ndarray, colours: bool) -> np.ndarray:
    """A mask (H, W) or (H, W, 3) with one integer per pixel: an id, or 0xRRGGBB if three channels are colours."""
    if mask.ndim == 2:
        return mask
    if not colours:
        return mask[..., 0]
    red, green, blue = np.moveaxis(mask.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def of_one_kind(stats: dict[str, MaskStats]) -> dict[str, MaskStats]:
    """The same, all with ids or all with colours.

    Palette indices become colours where one index has two colours in two files: a program that saves colours with as few
    indices as possible gives each file a palette of its own. Shades of grey among colours are colours.

    Raises:
        ValueError: If some hold ids and others colours.
    """
    if not _palettes_agree(stats.values()):
        stats = {name: _through_palette(one) for name, one in stats.items()}
    colours = [one.path for one in stats.values() if one.colours]
    if not colours:
        return stats
    ids = [one.path for one in stats.values() if not one.colours and one.channels == 1]
    if ids:
        raise ValueError(
            f'{len(ids)} masks, such as {ids[0]}, hold one channel of ids, and {len(stats) - len(ids)}, such as '
            f'{colours[0]}, colours: give masks of one kind.'
        )
    return {name: one if one.colours else _shades_as_colours(one) for name, one in stats.items()}


def _palettes_agree(stats: Iterable[MaskStats]) -> bool:
    colours: dict[int, int] = {}
    return all(colours.setdefault(i, colour) == colour for one in stats for i, colour in _palette_colours(one).items())


def _through_palette(one: MaskStats) -> MaskStats:
    return one if one.palette is None else _with_values(one, _palette_colours(one))


def _shades_as_colours(one: MaskStats) -> MaskStats:
    return _with_values(one, {shade: pack((shade, shade, shade)) for shade in one.pixels})


def _palette_colours(one: MaskStats) -> dict[int, int]:
    """Colour, as 0xRRGGBB, of each index that occurs in a palette file; nothing for other files."""
    table = np.array(one.palette or [], np.int64).reshape(-1, 3)
    return {index: pack(table[index].tolist()) for index in one.pixels if 0 <= index < len(table)}


def _with_values(one: MaskStats, colour_of: dict[int, int]) -> MaskStats:
    """The same with colours in place of its values; values without one are dropped."""
    pixels: dict[int, int] = {}
    for value, colour in colour_of.items():
        pixels[colour] = pixels.get(colour, 0) + one.pixels[value]
    return replace(one, pixels=pixels, colours=True)


def totals(stats: Iterable[MaskStats]) -> Totals:
    """Pixels and images of each value over all masks, in order."""
    pixels: dict[int, int] = {}
    images: dict[int, int] = {}
    for one in stats:
        for value, count in one.pixels.items():
            pixels[value] = pixels.get(value, 0) + count
            images[value] = images.get(value, 0) + 1
    return {value: (pixels[value], images[value]) for value in sorted(pixels)}


def pack(value: int | Iterable[int]) -> int:
    """An id as it is, a colour (r, g, b) as 0xRRGGBB."""
    if isinstance(value, int):
        return value
    red, green, blue = value
    return red << 16 | green << 8 | blue


def unpack(value: int) -> tuple[int, int, int]:
    """The colour of 0xRRGGBB."""
    return value >> 16, value >> 8 & 0xFF, value & 0xFF


def show(value: int, colours: bool) -> str:
    """An id, or a colour as r,g,b."""
    return ','.join(map(str, unpack(value))) if colours else str(value)
