"""Which mask belongs to which image, from the names of the files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmseg_eomt.data.images import IMAGE_TYPES, files_in

BOUNDARIES = '._-'  # a name's end begins with one of these


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
    found = [path.relative_to(folder).as_posix() for path in files_in(folder, IMAGE_TYPES)]
    if not found:
        raise ValueError(f'{folder} holds no image: no file there ends in {", ".join(IMAGE_TYPES)}.')
    return sorted(found)


def find_pairs(images: Path, masks: Path, mask_suffix: str | None = None) -> Pairs:
    """Pair the files of two folders, which may be one.

    A mask has its image's path with another end: ``a/1.jpg`` and ``a/1.png``, ``1_image.png`` and ``1_mask.png``. An image's
    end is its type, with or without what all names of this type end in. A mask's end is the one that gives most pairs; of
    several as good, ``labelTrainIds`` (Cityscapes) is taken, then PNG, then the shortest.

    Args:
        images: Folder of the images.
        masks: Folder of the masks.
        mask_suffix: End of the masks' names. Default: found from the names.

    Raises:
        ValueError: If a folder is missing or empty, or no mask has an image's name, with names from both.
    """
    image_names, mask_names = list_images(images), list_images(masks)
    one_folder = images.resolve() == masks.resolve()
    counts = {tail: _mask_ends(image_names, mask_names, tail, one_folder) for tail in _tails(image_names)}
    ranks = [
        (count, 'labelTrainIds' in end, end.lower().endswith('.png'), -len(end), -len(tail), tail, end)
        for tail, ends in counts.items()
        for end, count in ends.items()
        if mask_suffix in (None, end)
    ]
    if not ranks:
        raise ValueError(
            f'No mask has the name of an image. Images: {_some(image_names)} in {images}; masks: {_some(mask_names)} in '
            f"{masks}. A mask has to have its image's path with another end"
            + (f', which was to be {mask_suffix!r}.' if mask_suffix else ', such as a/1.jpg and a/1.png.')
        )
    *_, tail, end = max(ranks)
    image_of = _pair(image_names, set(mask_names), tail, end, one_folder)
    taken = set(image_of.values())
    own_ends = {name.removeprefix(_start(name, tail)) for name in taken if one_folder}
    other_ends = {other: count for other, count in counts[tail].items() if other not in (end, *own_ends)}
    if one_folder:  # a mask there is no image
        image_names = [name for name in image_names if name in taken or not name.endswith((end, *other_ends))]
    types = {Path(name).suffix for name in taken}
    suffix = f'{tail}{types.pop()}' if len(types) == 1 else ''
    return Pairs(
        masks={name.removesuffix(suffix): mask for mask, name in sorted(image_of.items(), key=lambda item: item[1])},
        image_suffix=suffix,
        mask_suffix=end,
        lone_images=[name for name in image_names if name not in taken],
        lone_masks=[name for name in mask_names if name.endswith(end) and name not in taken and name not in image_of],
        other_masks=other_ends,
    )


def _tails(names: list[str]) -> list[str]:
    """What the names of all images of a type end in before it; nothing, too."""
    tails = ['']
    for kind in sorted({Path(name).suffix for name in names}):
        first, *others = (name.removesuffix(kind).rsplit('/', 1)[-1] for name in names if name.endswith(kind))
        shared = (first[i:] for i in range(1, len(first)) if first[i] in BOUNDARIES and others)
        tails += [tail for tail in shared if all(other.endswith(tail) for other in others)]
    return tails


def _start(name: str, tail: str) -> str:
    """An image's path without its end."""
    return name[: name.rindex('.')].removesuffix(tail)


def _mask_ends(image_names: list[str], mask_names: list[str], tail: str, one_folder: bool) -> Counter[str]:
    """Ends that make a mask's path of an image's, with the number of masks that have them."""
    starts, ends = Counter(_start(name, tail) for name in image_names), Counter[str]()
    for name in mask_names:
        own = _start(name, tail) if one_folder else None  # no image is its own mask
        boundaries = (i for i in range(name.rfind('/') + 2, len(name)) if name[i] in BOUNDARIES)
        ends.update(name[i:] for i in boundaries if starts[name[:i]] > (name[:i] == own))
    return ends


def _pair(image_names: list[str], mask_names: set[str], tail: str, end: str, one_folder: bool) -> dict[str, str]:
    """Image of each mask; of several images of one name, the one that ends in the tail, then of the most common type."""
    types = Counter(Path(name).suffix for name in image_names)
    image_of: dict[str, str] = {}
    for name in sorted(image_names, key=lambda name: (not Path(name).stem.endswith(tail), -types[Path(name).suffix])):
        mask = _start(name, tail) + end
        if mask in mask_names and not (one_folder and mask == name):
            image_of.setdefault(mask, name)
    return image_of


def _some(names: list[str]) -> str:
    return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
