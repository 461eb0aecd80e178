"""From a folder of images and a folder of masks to a config that trains on them.

    python tools/init_dataset.py IMAGES MASKS [--name NAME] [--classes NAMES] [--ignore VALUE …]

It reads every file, says what it found, and writes

    configs/NAME.py              the config, for tools/train.py
    data/NAME/train.txt, val.txt   which images are for what
    data/NAME/contact_sheet.png  some images with their masks and the names of the classes
    data/NAME/masks/             class ids, where the given masks hold colours or other ids

IMAGES and MASKS stay as they are. Masks may hold class ids in one channel, palette indices, or a colour for each class.
Folders train, val and test in IMAGES are the split; without val and test, images for evaluation are drawn at random.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image
from tqdm import tqdm

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.own_data.class_list import classes_and_ignored
from mmseg_eomt.commands.own_data.class_mapping import (
    IGNORED,
    WHITES,
    as_shades,
    kind_of,
    look_at,
    make_labels,
    pack,
    show,
    through_palettes,
    totals,
)
from mmseg_eomt.commands.own_data.config import base_config, config_text
from mmseg_eomt.commands.own_data.pairing import find_pairs
from mmseg_eomt.commands.own_data.smoothing import refuse_smoothed
from mmseg_eomt.commands.own_data.split import once, split
from mmseg_eomt.data.check import describe
from mmseg_eomt.data.images import AS_A_RUN, Picture
from mmseg_eomt.data.masks import describe_turned, lost_in_a_list, read_mask
from mmseg_eomt.visualization import overlay, sheet, with_legend
from mmseg_eomt.whole import is_unfinished, whole_file, whole_folder

NUM_SHEET = 12
RARE = 1e-4  # share of the pixels


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    config_file, data_dir = args.out or Path('configs') / f'{args.name}.py', Path('data') / args.name
    there = [str(path) for path in (config_file, data_dir) if holds_anything(path)]
    if there and not args.force:
        sys.exit(f'{" and ".join(there)} exists: give another --name, or --force to write it anew.')
    with errors_in_a_sentence('init_dataset'):
        init_dataset(args, config_file, data_dir)


def holds_anything(path: Path) -> bool:
    """Whether there is a file, or a folder with more in it than a killed run has left."""
    return not all(map(is_unfinished, path.iterdir())) if path.is_dir() else path.exists()


def init_dataset(args: argparse.Namespace, config_file: Path, data_dir: Path) -> None:
    """Look, say what was found, and write; raises a ValueError where the data cannot be used."""
    base = base_config(args.base, args.iters)
    if config_file.suffix != '.py' or config_file.is_dir():
        raise ValueError(f'--out is the path of a config to write, which ends in .py, got {config_file}.')
    if base == config_file.resolve():
        raise ValueError(f'--base {args.base} is the file to be written: give another --name or --out.')
    classes, ignored = classes_and_ignored(args.classes, args.ignore)
    pairs = find_pairs(args.images, args.masks, args.mask_suffix)
    image_of = {name: args.images / f'{name}{pairs.image_suffix}' for name in pairs.masks}
    mask_of = {name: args.masks / mask for name, mask in pairs.masks.items()}
    say_pairs(pairs)
    if pairs.mask_suffix.lower().endswith(('.jpg', '.jpeg')):
        raise ValueError(f'The masks end in {pairs.mask_suffix}: JPEG changes values near edges. Save them as PNG.')

    looks, labels = find_labels(image_of, mask_of, classes, ignored, args.skip_bad)
    names = once({name: image_of[name] for name in looks})
    if len(names) < len(looks):
        print(f'  {len(looks) - len(names)} images are links to others of these, which are taken once')
    train, val, said = split(names, [*pairs.masks, *pairs.lone_images], args.val, args.seed)
    print(said)
    say_split(train, val, looks, labels)

    used = {name: mask_of[name] for name in (*train, *val)}
    rewriting = labels.rewrite or not pairs.image_suffix  # a name has its image's type then, and its mask's is that and .png
    masks, mask_suffix = (data_dir / 'masks', '.png') if rewriting else (args.masks, pairs.mask_suffix)
    if rewriting:
        refuse_own_files(masks, {*used.values(), *map(image_of.get, used)})
    with whole_folder(masks) if rewriting else nullcontext() as folder:
        if rewriting:
            rewrite(labels, used, folder)
        config_file.unlink(missing_ok=True)  # of an earlier run: its classes may not be those of these masks
    for title, names in (('train', train), ('val', val)):
        with whole_file(data_dir / f'{title}.txt') as path:
            path.write_text('\n'.join(names) + '\n', encoding='utf-8')
    with whole_file(data_dir / 'contact_sheet.png') as path:
        draw_sheet(path, labels, image_of, mask_of, train, val)
    folders = dict(img_path=args.images.as_posix(), seg_map_path=masks.as_posix())
    suffixes = dict(img_suffix=pairs.image_suffix, seg_map_suffix=mask_suffix)
    dataset = dict(data_prefix=folders, **suffixes)
    lists = {part: (data_dir / f'{part}.txt').as_posix() for part in ('train', 'val')}
    text = config_text(config_file, base, labels, dataset, lists, args.iters)
    title = f'{args.name}: {len(train)} images to train on, {len(val)} to evaluate on. Made by tools/init_dataset.py.'
    with whole_file(config_file) as path:  # the last one: where it is, the others are whole
        path.write_text(f'# {title}\n# {said}\n{text}', encoding='utf-8')
    say_next(config_file, data_dir, args.images)


def find_labels(
    image_of: dict[str, Path], mask_of: dict[str, Path], classes: dict | None, ignored: set, skip_bad: bool
) -> tuple[dict, Any]:
    """Read all pairs and say what they hold: what was seen in each that can be used, and the classes."""
    looks, problems = look_at_all(image_of, mask_of)
    if not looks:
        raise ValueError(f'No pair can be used: {problems[0]}')
    looks = through_palettes(looks)
    kind = kind_of({str(mask_of[name]): look for name, look in looks.items()})
    if kind == 'grey':
        looks = as_shades(looks)
    if not classes:
        refuse_smoothed(looks, mask_of, kind)
    occurring = totals(looks.values())
    labels = make_labels({str(mask_of[name]): look for name, look in looks.items()}, kind, classes, ignored)
    unknown_of = {name: unknown for name, look in looks.items() if (unknown := labels.unknown(look.values))}
    if len(unknown_of) > len(looks) / 2 and not skip_bad:
        missing = [f'{show(v, kind)} (in {occurring[v][1]})' for v in occurring if v not in labels.new_ids]
        raise ValueError(
            f'{len(unknown_of)} of {len(looks)} masks hold values that are in neither --classes nor --ignore: '
            f'{", ".join(missing[:20])}{", …" if len(missing) > 20 else ""}. Add them to one of the two.'
        )
    for name, unknown in unknown_of.items():
        problems.append(f'{mask_of[name]}: {"; ".join(unknown[:5])} is in neither --classes nor --ignore')
        del looks[name]
    absent = [show(value, kind) for value in sorted(map(pack, ignored)) if value not in occurring]
    if absent:
        print(f'  no mask holds {"; ".join(absent)}, which --ignore names')
    say_findings(looks, labels, totals(looks.values()))
    say_white(labels, occurring, classes, ignored)
    say_problems(problems, len(image_of), skip_bad)
    return looks, labels


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder of the images, with or without subfolders')
    parser.add_argument('masks', type=Path, help='folder of the masks, laid out alike')
    parser.add_argument('--name', default='my_data', help='of the config and of the folder in data (my_data)')
    parser.add_argument('--out', type=Path, help='path of the config (configs/NAME.py)')
    parser.add_argument(
        '--classes',
        help='names of ids 0, 1, … with commas between them; or a text file with a line for each class: '
        'name, name id, or name r g b (every value that occurs is a class)',
    )
    parser.add_argument(
        '--ignore',
        nargs='+',
        default=[],
        metavar='VALUE',
        help='ids, colours as r,g,b, or class names not to train on (255)',
    )
    parser.add_argument('--val', type=float, default=0.2, help='share for evaluation, where there are no folders (0.2)')
    parser.add_argument('--seed', type=int, default=0, help='of the random split (0)')
    parser.add_argument('--mask-suffix', help="end of the masks' names, such as _mask.png (found from the names)")
    parser.add_argument('--skip-bad', action='store_true', help='leave out pairs that cannot be used, and go on')
    parser.add_argument(
        '--base',
        default='eomt_lora_dinov2-b_cityscapes_640.py',
        help='config to start from: a path, or a name in configs (eomt_lora_dinov2-b_cityscapes_640.py)',
    )
    parser.add_argument('--iters', type=int, help='iterations to train (8000, or as the base if its schedule is its own)')
    parser.add_argument('--force', action='store_true', help='write over an existing config')
    args = parser.parse_args(argv)
    if not 0 < args.val < 1:
        parser.error(f'--val is a share between 0 and 1, got {args.val}')
    return args


def look_at_all(image_of: dict[str, Path], mask_of: dict[str, Path]) -> tuple[dict, list[str]]:
    """What each pair holds, and what is wrong with the others."""

    def look(name: str):
        if lost_in_a_list(name):
            return f'{image_of[name]}: lists of images lose the blank that {name!r} begins or ends with: rename it'
        try:
            return look_at(image_of[name], mask_of[name])
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = list(tqdm(pool.map(look, image_of), 'Reading', len(image_of), unit='pairs', delay=1))
    good = {name: result for name, result in zip(image_of, found) if not isinstance(result, str)}
    return good, [result for result in found if isinstance(result, str)]


def say_pairs(pairs) -> None:
    """Print which files belong together."""
    kind = f'…{pairs.image_suffix}' if pairs.image_suffix else 'of several types'
    print(f'{len(pairs.masks)} images ({kind}) with masks (…{pairs.mask_suffix})')
    for title, names in (('images without a mask', pairs.lone_images), ('masks without an image', pairs.lone_masks)):
        if names:
            print(f'  {len(names)} {title}, left out: {", ".join(names[:5])}{", …" if len(names) > 5 else ""}')
    for suffix, count in pairs.other_masks.items():
        print(f'  {count} further masks end in {suffix}: --mask-suffix {suffix} takes these')


def say_findings(looks: dict, labels, occurring: dict[int, tuple[int, int]]) -> None:
    """Print sizes, the kind of masks and a table of the classes."""
    turned = [(name, Picture(look.size, look.orientation)) for name, look in looks.items() if look.orientation != 1]
    if turned:
        print(f'  {describe_turned(turned)}')
    sizes = Counter(look.size for look in looks.values()).most_common()
    shown = [f'{width}×{height} ({count})' for (height, width), count in sizes[:4]]
    print(f'  sizes: {", ".join(shown)}{f" and {len(sizes) - 4} others" if len(sizes) > 4 else ""}')
    palette = labels.kind == 'ids' and any(look.palette for look in looks.values())
    kinds = dict(ids='ids in one channel', grey='ids as shades of grey in three channels', colours='a colour for each class')
    print(f'  masks: {"ids with a palette" if palette else kinds[labels.kind]}')
    total = sum(pixels for pixels, _ in occurring.values()) or 1
    rows = [('id', 'in masks', 'name', 'pixels', 'images')]
    for stored, new in sorted(labels.new_ids.items(), key=lambda item: item[1]):
        pixels, images = occurring.get(stored, (0, 0))
        if new != IGNORED or pixels:
            name = '(not trained on)' if new == IGNORED else labels.classes[new]
            rows.append((str(new), show(stored, labels.kind), name, f'{pixels / total:.2%}', str(images)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    empty = sum(all(labels.new_ids[value] == IGNORED for value in look.values) for look in looks.values())
    rare = [
        labels.classes[labels.new_ids[v]]
        for v, (n, _) in occurring.items()
        if n < RARE * total and labels.new_ids[v] != IGNORED
    ]
    if rare:
        print(f'  rare: {", ".join(rare)}. If these are stray values and no classes, name the classes or --ignore them.')
    if empty:
        print(f'  {empty} masks have no labelled pixel: nothing is learnt from their images.')


def say_white(labels, occurring: dict[int, tuple[int, int]], classes: dict | None, ignored: set) -> None:
    """Print what 255 was taken for, where the user did not say it."""
    if labels.kind == 'colours':
        return
    for white in set(WHITES) & occurring.keys() - ignored - set((classes or {}).values()):
        new = labels.new_ids[white]
        if new == IGNORED:
            fix = f'give a file of classes in which a line "NAME {white}" names it'
            print(f'  {white} is not trained on, as usual. If it is a class, {fix}.')
        elif 1 in occurring:
            print(f'  {white} is {labels.classes[new]}, as 1 is. If it is not to be trained on, add --ignore {white}.')


def say_problems(problems: list[str], num_pairs: int, skip: bool) -> None:
    """Print what is wrong; end unless such pairs are to be left out."""
    if not problems:
        return
    if not skip:
        raise ValueError(describe(problems, num_pairs) + '\nMend them, or give --skip-bad to leave them out.')
    print(describe(problems, num_pairs) + '\n  They are left out.')


def say_split(train: list[str], val: list[str], looks: dict, labels) -> None:
    """Print the numbers of images, and which classes training would never see."""
    print(f'{len(train)} images to train on, {len(val)} to evaluate on')
    for title, names in (('training', train), ('evaluation', val)):
        seen = {labels.new_ids[value] for name in names for value in looks[name].values}
        absent = [name for i, name in enumerate(labels.classes) if i not in seen]
        if absent:
            print(f'  not in the images for {title}: {", ".join(absent)}')


def refuse_own_files(folder: Path, files: set[Path]) -> None:
    """Raise a ValueError where a folder that is to be written has files of the user's in it."""
    own = next((file for file in sorted(files) if folder.resolve() in file.resolve().parents), None)
    if own:
        raise ValueError(f'The class ids go to {folder}, and {own} is there: give another --name, and your files stay.')


def rewrite(labels, mask_of: dict[str, Path], folder: Path) -> None:
    """Write each mask's class ids as a PNG of one channel."""

    def write(name: str) -> None:
        out = folder / f'{name}.png'
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.ids(*read_mask(mask_of[name]))).save(out)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(write, mask_of), 'Writing class ids', len(mask_of), unit='masks', delay=1))


def draw_sheet(path: Path, labels, image_of: dict, mask_of: dict, train: list[str], val: list[str]) -> None:
    """Draw some images under their masks, evenly taken from both parts."""
    pictures, titles = [], []
    for title, names in (('train', train), ('val', val)):
        for i in sorted({int(i) for i in np.linspace(0, len(names) - 1, min(len(names), NUM_SHEET // 2))}):
            image = AS_A_RUN.read(image_of[names[i]])[..., ::-1]
            ids = labels.ids(*read_mask(mask_of[names[i]]))
            present = [k for k in range(len(labels.classes)) if (ids == k).any()]
            pictures.append(with_legend(overlay(image, ids, labels.palette), labels.classes, labels.palette, present))
            titles.append(f'{title}: {names[i]}')
    Image.fromarray(sheet(pictures, titles)).save(path)


def say_next(config_file: Path, data_dir: Path, images: Path) -> None:
    """Print what was written and the commands to go on with."""
    config = Config.fromfile(config_file)
    length = config.train_cfg.get('max_iters')
    last = f'iter_{length}.pth' if length else f'epoch_{config.train_cfg.max_epochs}.pth'
    last = f'work_dirs/{config_file.stem}/{last}'
    print(f'\nWrote {config_file}, and {data_dir / "contact_sheet.png"} to look at. Next:\n')
    train, predict = (
        f'python tools/{name}.py' if Path('tools', f'{name}.py').is_file() else f'mmseg-eomt {name}'
        for name in ('train', 'predict')
    )
    config_name, last, images = (shlex.quote(str(path)) for path in (config_file, last, images))
    print(f'  {train} {config_name}')
    print(f'  {predict} {config_name} {last} {images} --out predictions')
