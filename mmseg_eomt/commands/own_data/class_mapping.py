"""Which class each value in a set of masks is, and which are ignored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmseg_eomt.commands.own_data.mask_stats import MaskStats, one_value, pack, show, totals, unpack
from mmseg_eomt.visualization import make_palette

IGNORED = 255
WHITES = IGNORED, 65535  # the highest ids of one byte and of two: usually ignored
MAX_COLOURS = 64  # more without a list of classes: a photograph, or edges that were smoothed
Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class ClassMapping:
    """Classes of a dataset and how its masks' values become their ids.

    Attributes:
        classes: Names, by id.
        palette: A colour (r, g, b) for each.
        new_ids: Id of each stored value, 255 for those that are ignored.
        colours: Whether the values are colours, 0xRRGGBB.
        rewrite: Whether masks have to be written as ids, since they do not hold these in one channel.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    new_ids: dict[int, int]
    colours: bool
    rewrite: bool

    def unknown(self, values: Iterable[int]) -> list[str]:
        """Values that have no id, as they are shown to a reader."""
        return [show(value, self.colours) for value in values if value not in self.new_ids]

    def ids(self, mask: np.ndarray, palette: list[int] | None = None) -> np.ndarray:
        """Ids (H, W), uint8, of a mask and its palette as :func:`~mmseg_eomt.data.masks.read_mask` gives them."""
        if self.colours and mask.ndim == 2:
            mask = np.array(palette, np.uint8).reshape(-1, 3)[mask]
        values, inverse = np.unique(one_value(mask, self.colours), return_inverse=True)
        return np.array([self.new_ids[int(value)] for value in values], np.uint8)[inverse.reshape(mask.shape[:2])]


def map_classes(stats: Sequence[MaskStats], classes: dict[str, Value] | None, ignored: set[Value]) -> ClassMapping:
    """Decide which value is which class.

    With ``classes`` these are the classes, in their order, and other values stay unknown. Without, each value that is not
    ignored is one, in order. 255 (65535 in masks of two bytes) is ignored too, except where it is named in ``classes``, and
    where masks hold nothing but 0 and 255, which are two classes. Of two ``classes`` with the ids 0 and 1 it is the second,
    where masks hold nothing but these three, and none of them 1 and 255 together.

    Args:
        stats: Of all masks, which are :func:`~mmseg_eomt.commands.own_data.mask_stats.of_one_kind`.
        classes: Name and value of each class, or None.
        ignored: Values that are not trained on.

    Raises:
        ValueError: If there are fewer than two classes, more than 255, or so many colours that they are none; if an id is
            negative, or no mask has a pixel of a class while a value that is not named covers some.
    """
    colours, occurring = stats[0].colours, totals(stats)
    not_trained = {pack(value) for value in ignored}
    usual = set[int]() if colours else set(WHITES) if 65535 in occurring else {IGNORED}
    if not colours:
        _refuse_negative(stats, not_trained)
    if classes:
        new_ids, names = _named_classes(stats, classes, not_trained), list(classes)
        _refuse_unseen(stats, classes, new_ids, not_trained)
    else:
        kept = _values_as_classes(stats, not_trained, usual)
        new_ids = {value: i for i, value in enumerate(kept)}
        names = [f'class_{show(value, colours).replace(",", "_")}' for value in kept]
    if not 2 <= len(names) <= IGNORED:
        raise ValueError(f'A dataset needs 2 to {IGNORED} classes (background is one), but these are {len(names)}: {names}.')
    palette = _palette(stats, new_ids, len(names))
    new_ids.update({value: IGNORED for value in not_trained | usual if value not in new_ids})
    one_channel_of_ids = not colours and all(one.channels == 1 for one in stats)
    rewrite = not one_channel_of_ids or any(old != new for old, new in new_ids.items())
    return ClassMapping(names, palette, new_ids, colours, rewrite)


def _named_classes(stats: Sequence[MaskStats], classes: dict[str, Value], not_trained: set[int]) -> dict[int, int]:
    """Id of each value that is named, or white in masks of black and white, which programs save so for 0 and 1."""
    new_ids = {pack(value): i for i, value in enumerate(classes.values())}
    occurring = set(totals(stats)) - not_trained
    whites = occurring & set(WHITES)
    together = any(1 in one.pixels and not whites.isdisjoint(one.pixels) for one in stats)
    if stats[0].colours or set(new_ids) != {0, 1} or together or not whites or not occurring <= {0, 1, *WHITES}:
        return new_ids
    second = new_ids[1] if 1 in occurring else new_ids.pop(1)
    return new_ids | dict.fromkeys(whites, second)


def _values_as_classes(stats: Sequence[MaskStats], not_trained: set[int], usual: set[int]) -> list[int]:
    """Values that are a class each."""
    kept = [value for value in totals(stats) if value not in not_trained]
    if set(kept) not in ({0, white} for white in WHITES):
        kept = [value for value in kept if value not in usual]
    if stats[0].colours and len(kept) > MAX_COLOURS:
        raise ValueError(
            f'The masks hold {len(kept)} colours. Are they photographs, or were they saved as JPEG or with smoothed '
            f'edges? Give masks with one colour per class, or --classes with the name and colour of each.'
        )
    return kept


def _palette(stats: Sequence[MaskStats], new_ids: dict[int, int], num_classes: int) -> list[tuple[int, int, int]]:
    """Colours of the classes: those of the masks where they have any."""
    palette = make_palette(num_classes)
    stored = next((one.palette for one in stats if one.palette), [])
    for value, new in new_ids.items():
        if stats[0].colours:
            palette[new] = unpack(value)
        elif 3 * value + 2 < len(stored):
            red, green, blue = stored[3 * value : 3 * value + 3]
            palette[new] = (red, green, blue)
    return palette


def _refuse_negative(stats: Sequence[MaskStats], not_trained: set[int]) -> None:
    for one in stats:
        for value in one.pixels:
            if value < 0 and value not in not_trained:
                number = sum(value in other.pixels for other in stats)
                raise ValueError(
                    f'{number} masks, such as {one.path}, hold {value}, and ids are 0 or more: add --ignore {value} if it '
                    f'is not to be trained on.'
                )


def _refuse_unseen(
    stats: Sequence[MaskStats], classes: dict[str, Value], new_ids: dict[int, int], not_trained: set[int]
) -> None:
    """The masks may have another value for a class that no pixel has: it would be ignored, or its masks be skipped."""
    occurring = totals(stats)
    seen = {new_ids.get(value) for value in occurring}
    unseen = [name for i, name in enumerate(classes) if i not in seen]
    unnamed = [value for value in occurring if value not in new_ids and value not in not_trained]
    if not unseen or not unnamed:
        return
    value = max(unnamed, key=lambda value: occurring[value][0])
    fraction = occurring[value][0] / sum(pixels for pixels, _ in occurring.values())
    given, shown = classes[unseen[0]], show(value, stats[0].colours)
    of = f'{unseen[0]} ({given if isinstance(given, int) else ",".join(map(str, given))})'
    path = next(one.path for one in stats if value in one.pixels)
    others = f' and {len(unseen) - 1} other classes' if len(unseen) > 1 else ''
    raise ValueError(
        f'No mask has a pixel of {of}{others} of --classes, while {shown}, which it does not name, covers {fraction:.2%} '
        f'of all pixels (first in {path}): if that is {unseen[0]}, give a file of classes with the line '
        f'"{unseen[0]} {shown}"; if it is not to be trained on, add --ignore {shown}.'
    )
