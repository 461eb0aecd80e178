"""What the values in a set of masks mean: classes, colours and ids of the training."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmseg_eomt.data.masks import read_pair
from mmseg_eomt.visualization import make_palette

IGNORED = 255
WHITES = IGNORED, 65535  # the highest ids of one byte and of two: usually not trained on
MAX_COLOURS = 64  # more without a list of classes: a photograph, or edges that were smoothed
Value = int | tuple[int, int, int]
Totals = dict[int, tuple[int, int]]  # pixels and images of each value


@dataclass(frozen=True)
class Look:
    """What one image and its mask hold.

    Attributes:
        size: Height and width in pixels.
        values: Pixels of each stored value: an id, or a colour as 0xRRGGBB.
        kind: ``'ids'``, ``'colours'``, or ``'grey'`` for colours that are all shades of grey.
        palette: Colours of a palette file, r, g, b, r, g, …, or None.
        orientation: The Exif orientation that the reader applies to the image, 1 for none.
    """

    size: tuple[int, int]
    values: dict[int, int]
    kind: str
    palette: list[int] | None
    orientation: int = 1


@dataclass(frozen=True)
class Labels:
    """Classes of a dataset and how its masks' values become their ids.

    Attributes:
        classes: Names, by id.
        palette: A colour (r, g, b) for each.
        new_ids: Id of each stored value, 255 for those that are ignored.
        kind: As of :class:`Look`, for all masks.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    new_ids: dict[int, int]
    kind: str

    @property
    def rewrite(self) -> bool:
        """Whether the masks have to be written anew, since they do not hold the ids themselves."""
        return self.kind != 'ids' or any(old != new for old, new in self.new_ids.items())

    def unknown(self, values: Iterable[int]) -> list[str]:
        """Values that have no id, as they are shown to a reader."""
        return [show(value, self.kind) for value in values if value not in self.new_ids]

    def ids(self, mask: np.ndarray, palette: list[int] | None = None) -> np.ndarray:
        """Ids (H, W), uint8, of a mask and its palette as :func:`~mmseg_eomt.data.masks.read_mask` gives them."""
        if self.kind == 'colours' and mask.ndim == 2:
            mask = np.array(palette, np.uint8).reshape(-1, 3)[mask]
        values, inverse = np.unique(packed(mask, self.kind), return_inverse=True)
        return np.array([self.new_ids[int(value)] for value in values], np.uint8)[inverse.reshape(mask.shape[:2])]


def look_at(image: Path, mask: Path) -> Look:
    """Read a pair.

    Raises:
        ValueError: If a file cannot be used or their sizes differ, in a sentence that begins with the file.
    """
    (size, orientation), values, palette = read_pair(image, mask)
    if values.dtype.kind not in 'uib':
        raise ValueError(f'{mask}: the mask holds numbers with fractions ({values.dtype}), not ids or colours')
    kind = 'ids'
    if values.ndim == 3:
        kind = 'grey' if (values == values[..., :1]).all() else 'colours'
    if values.dtype == np.uint8 and values.ndim == 2:  # six times as fast as sorting
        counts = np.bincount(values.ravel(), minlength=256)
        found = counts.nonzero()[0]
        counts = counts[found]
    else:
        found, counts = np.unique(packed(values, 'colours'), return_counts=True)
    return Look(size, dict(zip(map(int, found), map(int, counts))), kind, palette, orientation)


def through_palettes(looks: dict[str, Look]) -> dict[str, Look]:
    """The same, but with colours in place of palette indices where one index has two colours in two files.

    A program that saves colours with as few indices as possible gives each file a palette of its own.
    """
    colours: dict[int, int] = {}
    agree = all(
        colours.setdefault(index, colour) == colour
        for look in looks.values()
        for index, colour in (palette_colours(look) or {}).items()
    )
    if agree:
        return looks
    changed = {}
    for name, look in looks.items():
        values: dict[int, int] = {}
        known = palette_colours(look)
        for index, colour in (known or {}).items():
            values[colour] = values.get(colour, 0) + look.values[index]
        changed[name] = look if known is None else replace(look, values=values, kind='colours')
    return changed


def palette_colours(look: Look) -> dict[int, int] | None:
    """Colour, as 0xRRGGBB, of each index that occurs in a palette file; None for other files."""
    if look.palette is None:
        return None
    table = np.array(look.palette, np.int64).reshape(-1, 3)
    return {index: pack(tuple(map(int, table[index]))) for index in look.values if index < len(table)}


def packed(mask: np.ndarray, kind: str) -> np.ndarray:
    """A mask's values as one integer a pixel: ids, a shade of grey, or 0xRRGGBB."""
    if mask.ndim == 2:
        return mask.astype(np.int64)
    if kind == 'grey':
        return mask[..., 0].astype(np.int64)
    red, green, blue = np.moveaxis(mask.astype(np.int64), -1, 0)
    return red << 16 | green << 8 | blue


def kind_of(looks: dict[str, Look]) -> str:
    """What all masks, by their path, hold.

    Raises:
        ValueError: If some hold ids and others colours.
    """
    kinds = {look.kind for look in looks.values()}
    if 'ids' in kinds and len(kinds) > 1:
        ids = [path for path, look in looks.items() if look.kind == 'ids']
        others = [path for path in looks if path not in set(ids)]
        raise ValueError(
            f'{len(ids)} masks, such as {ids[0]}, hold one channel of ids, and {len(others)}, such as {others[0]}, colours: '
            f'give masks of one kind.'
        )
    return 'colours' if 'colours' in kinds else kinds.pop()


def as_shades(looks: dict[str, Look]) -> dict[str, Look]:
    """The same, with a shade from 0 to 255 in place of each grey 0xRRGGBB."""
    return {name: replace(look, values={v & 0xFF: n for v, n in look.values.items()}) for name, look in looks.items()}


def totals(looks: Iterable[Look]) -> Totals:
    """Pixels and images of each value over all masks, in order."""
    pixels: dict[int, int] = {}
    images: dict[int, int] = {}
    for look in looks:
        for value, count in look.values.items():
            pixels[value] = pixels.get(value, 0) + count
            images[value] = images.get(value, 0) + 1
    return {value: (pixels[value], images[value]) for value in sorted(pixels)}


def make_labels(looks: dict[str, Look], kind: str, classes: dict[str, Value] | None, ignored: set[Value]) -> Labels:
    """Decide which value is which class.

    With ``classes`` these are the classes, in their order, and other values stay unknown. Without, each value that is not
    ignored is one, in order. 255 (65535 in masks of two bytes) is ignored too, except where it is named in ``classes``, and
    where masks hold nothing but 0 and 255, which are two classes. Of two ``classes`` with the ids 0 and 1 it is the second,
    where masks hold nothing but these three, and none of them 1 and 255 together.

    Args:
        looks: The masks by their path; grey ones as :func:`as_shades` gives them.
        kind: ``'ids'``, ``'grey'`` or ``'colours'``.
        classes: Name and value of each class, or None.
        ignored: Values that are not trained on.

    Raises:
        ValueError: If there are fewer than two classes, more than 255, or so many colours that they are none; if an id is
            negative, or no mask has a pixel of a class while a value that is not named covers some.
    """
    occurring = totals(looks.values())
    named = {pack(value): i for i, value in enumerate((classes or {}).values())}
    not_trained = {pack(value) for value in ignored}
    whites, usual = set[int](), set[int]()
    if kind != 'colours':
        _refuse_negative(looks, not_trained)
        whites = _white_classes(list(looks.values()), named, not_trained)
        usual = set(WHITES) if 65535 in occurring else {IGNORED}
    if classes:
        new_ids, names = named | {white: named[1] for white in whites}, list(classes)
        if whites and 1 not in occurring:
            del new_ids[1]
        _refuse_unseen(looks, classes, new_ids, not_trained, kind)
    else:
        kept = [value for value in occurring if value not in not_trained and (value in whites or value not in usual)]
        if kind == 'colours' and len(kept) > MAX_COLOURS:
            raise ValueError(
                f'The masks hold {len(kept)} colours. Are they photographs, or were they saved as JPEG or with smoothed '
                f'edges? Give masks with one colour a class, or --classes with the name and colour of each.'
            )
        new_ids = {value: i for i, value in enumerate(kept)}
        names = [f'class_{show(value, kind).replace(",", "_")}' for value in kept]
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(f'A dataset needs 2 to {IGNORED} classes (background is one), but these are {len(names)}: {names}.')
    palette = make_palette(len(names))
    stored = next((look.palette for look in looks.values() if look.palette), None)
    for value, new in new_ids.items():
        if kind == 'colours':
            palette[new] = unpack(value)
        elif stored and 3 * value + 2 < len(stored):
            palette[new] = tuple(stored[3 * value : 3 * value + 3])
    new_ids.update({value: IGNORED for value in not_trained | usual if value not in new_ids})
    return Labels(names, palette, new_ids, kind)


def _white_classes(looks: list[Look], named: dict[int, int], not_trained: set[int]) -> set[int]:
    """255 and 65535 where they are a class though none has that id: in masks of black and white, which programs save so."""
    occurring = set(totals(looks)) - not_trained
    whites = occurring & set(WHITES)
    if not named:
        return whites if occurring in ({0, white} for white in WHITES) else set()
    together = any(1 in look.values and not whites.isdisjoint(look.values) for look in looks)
    return whites if set(named) == {0, 1} and occurring <= {0, 1, *WHITES} and not together else set()


def _refuse_negative(looks: dict[str, Look], not_trained: set[int]) -> None:
    for path, look in looks.items():
        for value in look.values:
            if value < 0 and value not in not_trained:
                number = sum(value in other.values for other in looks.values())
                raise ValueError(
                    f'{number} masks, such as {path}, hold {value}, and ids are 0 or more: add --ignore {value} if it is '
                    f'not to be trained on.'
                )


def _refuse_unseen(
    looks: dict[str, Look], classes: dict[str, Value], new_ids: dict[int, int], ignored: set[int], kind: str
) -> None:
    """The masks may have another value for a class that no pixel has: it would be ignored, or its masks be left out."""
    occurring = totals(looks.values())
    seen = {new_ids.get(value) for value in occurring}
    unseen = [name for i, name in enumerate(classes) if i not in seen]
    unnamed = [value for value in occurring if value not in new_ids and value not in ignored]
    if not unseen or not unnamed:
        return
    value = max(unnamed, key=lambda value: occurring[value][0])
    fraction = occurring[value][0] / sum(pixels for pixels, _ in occurring.values())
    given, shown = classes[unseen[0]], show(value, kind)
    of = f'{unseen[0]} ({given if isinstance(given, int) else ",".join(map(str, given))})'
    path = next(path for path, look in looks.items() if value in look.values)
    others = f' and {len(unseen) - 1} other classes' if len(unseen) > 1 else ''
    raise ValueError(
        f'No mask has a pixel of {of}{others} of --classes, while {shown}, which it does not name, covers {fraction:.2%} '
        f'of all pixels (first in {path}): if that is {unseen[0]}, give a file of classes with the line '
        f'"{unseen[0]} {shown}"; if it is not to be trained on, add --ignore {shown}.'
    )


def pack(value: Value) -> int:
    """An id as it is, a colour as 0xRRGGBB."""
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def unpack(value: int) -> tuple[int, int, int]:
    """The colour of 0xRRGGBB."""
    return value >> 16, value >> 8 & 0xFF, value & 0xFF


def show(value: int, kind: str) -> str:
    """An id, or a colour as r,g,b."""
    return ','.join(map(str, unpack(value))) if kind == 'colours' else str(value)
