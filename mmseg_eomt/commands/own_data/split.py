"""Which images are for training and which for evaluation."""

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

FOLDERS = dict(train=r'train(ing)?', val=r'val(id(ation)?)?', test=r'test(ing)?')
YEAR = r'[-_]?(\d{4})?'  # train2017


def part_of(name: str) -> tuple[str | None, str]:
    """``'train'``, ``'val'``, ``'test'`` or None for an image, and the folder that says so.

    That is the outermost one of such a name in the image's path: also ``training``, ``valid``, ``validation``, ``testing``,
    and with a year, ``train2017``.
    """
    folders = name.split('/')[:-1]
    for i, folder in enumerate(folders):
        for part, names in FOLDERS.items():
            if re.fullmatch(names + YEAR, folder.lower()):
                return part, '/'.join(folders[: i + 1])
    return None, folders[0] if folders else '.'


def once(files: dict[str, Path]) -> list[str]:
    """Names of images without those that links show again under another name; names of evaluation images come first."""
    order = ['val', 'test', 'train', None]
    first: dict[Path, str] = {}
    real = {name: file.resolve() for name, file in files.items()}
    for name in sorted(files, key=lambda name: order.index(part_of(name)[0])):
        first.setdefault(real[name], name)
    return [name for name in files if first[real[name]] == name]


def split(names: list[str], all_names: Iterable[str], fraction: float, seed: int) -> tuple[list[str], list[str], str]:
    """Images for training and for evaluation, and a sentence that says which these are.

    Where there is a folder ``train``, only its images are trained on, and none of a folder ``val`` or ``test`` ever is.
    Those of ``val`` are for evaluation; without any, those of ``test``; without these, a fraction of the images for training
    that is drawn at random and held out.

    Args:
        names: Images that can be used, by their path below their folder.
        all_names: All images, also those that cannot be used: they say which folders there are.
        fraction: Of the images to hold out.
        seed: Of the draw.

    Raises:
        ValueError: If nothing is left to train on, or a single image where one has to be held out.
    """
    parts: dict[str | None, list[str]] = {None: [], 'train': [], 'val': [], 'test': []}
    for name in names:
        parts[part_of(name)[0]].append(name)
    has_train = any(part_of(name)[0] == 'train' for name in all_names)
    train = parts['train' if has_train else None]
    evaluation = parts['val'] or parts['test']
    if not train:
        where = 'no image of the folder train can be used' if has_train else f'all of them are in {_folders(names)}'
        raise ValueError(
            f'There is no image to train on: {where}. Put images with masks into a folder train, or give the folder to draw '
            f'both parts from as IMAGES.'
        )
    source = _folders(train) if has_train or evaluation else 'all images'
    if evaluation:
        said = f'The split is that of the folders: training on {source}, evaluation on {_folders(evaluation)}.'
        if not parts['val']:
            said += ' There is no val: what is chosen by the evaluation is chosen on test images.'
    else:
        if len(train) < 2:
            raise ValueError(f'{len(train)} pair is too few: one has to be for training and one for evaluation.')
        num_held_out = min(len(train) - 1, max(1, round(fraction * len(train))))
        chosen = set(random.Random(seed).sample(train, num_held_out))
        evaluation, train = [name for name in train if name in chosen], [name for name in train if name not in chosen]
        said = (
            f'The split is random (--val {fraction}, --seed {seed}): a part of {source} is held out for evaluation, and '
            f'frames of one video are in both. For a fair figure put images into folders train and val.'
        )
    used = {*train, *evaluation}
    ignored = [name for name in names if name not in used]
    if ignored:
        said += f' {len(ignored)} images elsewhere are ignored ({_folders(ignored)}).'
    return train, evaluation, said


def _folders(names: list[str]) -> str:
    """The folders of images, with most images first."""
    found = [folder for folder, _ in Counter(part_of(name)[1] for name in names).most_common()]
    return ', '.join(found[:3]) + (f' and {len(found) - 3} other folders' if len(found) > 3 else '')
