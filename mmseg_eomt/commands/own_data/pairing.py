"""Which mask belongs to which image, from the names of the files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmseg_eomt.data.images import IMAGE_TYPES, files_in

BOUNDARIES = '._-'


@dataclass(frozen=True)
class Pairs:
    """Images with their masks.

    Attributes:
        masks: Path of the mask below its folder, by the name of its image: the path below its folder without
            ``image_suffix``. In order.
        image_suffix: End of all images' paths; empty where they are of several types.
        mask_suffix: End of all masks' paths.
        lone_images: Images without a mask, below their folder.
        lone_masks: Masks of that suffix without an image, below their folder.
        other_masks: Number of the masks' folder's further images of each suffix that would have fitted too.
    """

    masks: dict[str, str]
    image_suffix: str
    mask_suffix: str
    lone_images: list[str]
    lone_masks: list[str]
    other_masks: dict[str, int]


def list_images(folder: Path) -> list[str]:
    """Paths of all image files in a folder and its subfolders, below the folder.

    Raises:
        ValueError: If it is no folder, holds none, or a folder in it cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder.')
    found = sorted(path.relative_to(folder).as_posix() for path in files_in(folder, IMAGE_TYPES))
    if not found:
        raise ValueError(f'{folder} holds no image: no file there ends in {", ".join(IMAGE_TYPES)}.')
    return found


def find_pairs(images: Path, masks: Path, mask_suffix: str | None = None) -> Pairs:
    """Pair the files of two folders, which may be one.

    A mask has its image's path with another end: ``a/1.jpg`` and ``a/1.png``, ``1_image.png`` and ``1_mask.png``. The ends
    that give most pairs are taken; of several as good, ``labelTrainIds`` (Cityscapes), then PNG masks, then the shortest.
    Images of other types (``.jpg`` and ``.JPG``) are paired in the same way.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        mask_suffix: End of the masks' names. Default: found from the names.

    Raises:
        ValueError: If a folder is missing or empty, or no mask has an image's name, with names from both.
    """
    image_names, mask_names = list_images(images), list_images(masks)
    same = images.resolve() == masks.resolve()
    best: tuple | None = None
    for end in _ends(image_names):
        keys = {name[: -len(end)] for name in image_names if name.endswith(end)}
        tally = Counter(rest for name in mask_names for rest in _rests(name, keys) if not (same and rest == end))
        tally = {rest: count for rest, count in tally.items() if mask_suffix in (None, rest)}
        for rest, count in tally.items():
            lossless = rest.lower().endswith('.png') - end.lower().endswith('.png')  # of 1.jpg and 1.png, this is the mask
            rank = count, 'labelTrainIds' in rest, lossless, -len(rest), -len(end)
            if best is None or rank > best[0]:
                best = rank, end, rest, tally
    if best is None:
        raise ValueError(
            f'No mask has the name of an image. Images: {_some(image_names)} in {images}; masks: {_some(mask_names)} in '
            f"{masks}. A mask has to have its image's path with another end"
            + (f', which was to be {mask_suffix!r}.' if mask_suffix else ', such as a/1.jpg and a/1.png.')
        )
    _, end, rest, tally = best
    if same:  # what is a mask there is no image

        def is_mask(name: str) -> bool:
            return any(name.endswith(r) and not (end.endswith(r) and name.endswith(end)) for r in tally)

        image_names, mask_names = (
            [name for name in image_names if not is_mask(name)],
            [name for name in mask_names if is_mask(name)],
        )
    mask_names = [name for name in mask_names if name.endswith(rest)]
    paired = set(mask_names)
    before_type = end[: end.rindex('.')]
    found: dict[str, str] = {}  # image of each mask
    for name in sorted(image_names, key=lambda name: not name.endswith(end)):
        start = name.removesuffix(Path(name).suffix)
        mask = start.removesuffix(before_type) + rest
        if start.endswith(before_type) and mask in paired:
            found.setdefault(mask, name)
    one_type = all(name.endswith(end) for name in found.values())
    suffix = end if one_type else ''
    taken = set(found.values())
    return Pairs(
        {name.removesuffix(suffix): mask for mask, name in sorted(found.items(), key=lambda item: item[1])},
        suffix,
        rest,
        [name for name in image_names if name not in taken],
        [name for name in mask_names if name not in found],
        {other: count for other, count in tally.items() if other != rest},
    )


def _ends(names: list[str]) -> list[str]:
    """Possible ends of the images' names: each type of file, alone and with what all of its names end in."""
    ends = {}
    for suffix in sorted({Path(name).suffix for name in names}):
        ends[suffix] = None
        of_type = [name.rsplit('/', 1)[-1] for name in names if name.endswith(suffix)]
        tails = (of_type[0][i:] for i in range(1, len(of_type[0])) if of_type[0][i] in BOUNDARIES)
        ends.update({tail: None for tail in tails if len(of_type) > 1 and all(name.endswith(tail) for name in of_type)})
    return list(ends)


def _rests(name: str, keys: set[str]) -> list[str]:
    """What follows, in a mask's name, each beginning that is an image's."""
    first = name.rfind('/') + 1
    return [name[i:] for i in range(first + 1, len(name)) if name[i] in BOUNDARIES and name[:i] in keys]


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
