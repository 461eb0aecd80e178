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
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.own_data import report
from mmseg_eomt.commands.own_data.class_list import classes_and_ignored
from mmseg_eomt.commands.own_data.class_mapping import ClassMapping, Value, map_classes
from mmseg_eomt.commands.own_data.config import DEFAULT_BASE, base_config, config_text
from mmseg_eomt.commands.own_data.mask_stats import MaskStats, of_one_kind, read_stats, show, totals
from mmseg_eomt.commands.own_data.pairing import find_pairs
from mmseg_eomt.commands.own_data.smoothing import refuse_smoothed
from mmseg_eomt.commands.own_data.split import once, split
from mmseg_eomt.data.check import in_threads
from mmseg_eomt.data.images import DEFAULT_READER
from mmseg_eomt.data.masks import lost_in_a_list, read_mask
from mmseg_eomt.visualization import overlay, sheet, with_legend
from mmseg_eomt.whole import is_unfinished, whole_file, whole_folder

NUM_SHEET = 12


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    config_file, data_dir = args.out or Path('configs') / f'{args.name}.py', Path('data') / args.name
    there = [str(path) for path in (config_file, data_dir) if holds_anything(path)]
    if there and not args.force:
        sys.exit(f'{" and ".join(there)} exists: give another --name, or --force to overwrite it.')
    with errors_in_a_sentence('init_dataset'):
        init_dataset(args, config_file, data_dir)


def holds_anything(path: Path) -> bool:
    """Whether there is a file, or a folder with more in it than a killed run has left."""
    return not all(map(is_unfinished, path.iterdir())) if path.is_dir() else path.exists()


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
        help='ids, colours as r,g,b, or class names to ignore (255)',
    )
    parser.add_argument('--val', type=float, default=0.2, help='fraction for evaluation, where there are no folders (0.2)')
    parser.add_argument('--seed', type=int, default=0, help='of the random split (0)')
    parser.add_argument('--mask-suffix', help="end of the masks' names, such as _mask.png (found from the names)")
    parser.add_argument('--skip-bad', action='store_true', help='skip pairs that cannot be used, and go on')
    parser.add_argument(
        '--base',
        default=DEFAULT_BASE,
        help=f'config to start from: a path, or a name in configs ({DEFAULT_BASE})',
    )
    parser.add_argument('--iters', type=int, help='iterations to train (8000, or as the base if its schedule is its own)')
    parser.add_argument('--force', action='store_true', help='write over an existing config')
    args = parser.parse_args(argv)
    if not 0 < args.val < 1:
        parser.error(f'--val is a fraction between 0 and 1, got {args.val}')
    return args


def init_dataset(args: argparse.Namespace, config_file: Path, data_dir: Path) -> None:
    """Read the data, print what was found, and write; raises a ValueError where the data cannot be used."""
    base = base_config(args.base, args.iters)
    if config_file.suffix != '.py' or config_file.is_dir():
        raise ValueError(f'--out is the path of a config to write, which ends in .py, got {config_file}.')
    if base == config_file.resolve():
        raise ValueError(f'--base {args.base} is the file to be written: give another --name or --out.')
    classes, ignored = classes_and_ignored(args.classes, args.ignore)
    pairs = find_pairs(args.images, args.masks, args.mask_suffix)
    image_of = {name: args.images / f'{name}{pairs.image_suffix}' for name in pairs.masks}
    mask_of = {name: args.masks / mask for name, mask in pairs.masks.items()}
    report.print_pairs(pairs)
    if pairs.mask_suffix.lower().endswith(('.jpg', '.jpeg')):
        raise ValueError(f'The masks end in {pairs.mask_suffix}: JPEG changes values near edges. Save them as PNG.')

    stats, mapping = find_classes(image_of, mask_of, classes, ignored, args.skip_bad)
    names = once({name: image_of[name] for name in stats})
    if len(names) < len(stats):
        print(f'  {len(stats) - len(names)} images are links to others of these, which are taken once')
    train, val, said = split(names, [*pairs.masks, *pairs.lone_images], args.val, args.seed)
    print(said)
    report.print_split(train, val, stats, mapping)

    used = {name: mask_of[name] for name in (*train, *val)}
    # a name has its image's type where these are several, and its mask's is that and .png
    rewriting = mapping.rewrite or not pairs.image_suffix
    masks, mask_suffix = (data_dir / 'masks', '.png') if rewriting else (args.masks, pairs.mask_suffix)
    if rewriting:
        refuse_own_files(masks, {*used.values(), *(image_of[name] for name in used)})
    with whole_folder(masks) if rewriting else nullcontext() as folder:
        if folder:
            write_masks(mapping, used, folder)
        config_file.unlink(missing_ok=True)  # of an earlier run: its classes may not be those of these masks
    lists = {part: data_dir / f'{part}.txt' for part in ('train', 'val')}
    for part, names in (('train', train), ('val', val)):
        with whole_file(lists[part]) as path:
            path.write_text('\n'.join(names) + '\n', encoding='utf-8')
    with whole_file(data_dir / 'contact_sheet.png') as path:
        draw_sheet(path, mapping, image_of, mask_of, train, val)
    folders = dict(img_path=args.images.as_posix(), seg_map_path=masks.as_posix())
    dataset = dict(data_prefix=folders, img_suffix=pairs.image_suffix, seg_map_suffix=mask_suffix)
    text = config_text(config_file, base, mapping, dataset, lists, args.iters)
    title = f'{args.name}: {len(train)} images to train on, {len(val)} to evaluate on. Made by tools/init_dataset.py.'
    with whole_file(config_file) as path:  # the last one: where it is, the others are whole
        path.write_text(f'# {title}\n# {said}\n{text}', encoding='utf-8')
    report.print_next(config_file, data_dir, args.images)


def find_classes(
    image_of: dict[str, Path],
    mask_of: dict[str, Path],
    classes: dict[str, Value] | None,
    ignored: set[Value],
    skip_bad: bool,
) -> tuple[dict[str, MaskStats], ClassMapping]:
    """Read all pairs and print what they hold: the statistics of each that can be used, and the classes."""
    stats, problems = read_all(image_of, mask_of)
    if not stats:
        raise ValueError(f'No pair can be used: {problems[0]}')
    stats = of_one_kind(stats)
    if not classes:
        refuse_smoothed(list(stats.values()))
    mapping, occurring = map_classes(list(stats.values()), classes, ignored), totals(stats.values())
    unknown_of = {name: unknown for name, one in stats.items() if (unknown := mapping.unknown(one.pixels))}
    if len(unknown_of) > len(stats) / 2 and not skip_bad:
        missing = [f'{show(v, mapping.colours)} (in {occurring[v][1]})' for v in occurring if v not in mapping.new_ids]
        raise ValueError(
            f'{len(unknown_of)} of {len(stats)} masks hold values that are in neither --classes nor --ignore: '
            f'{", ".join(missing[:20])}{", …" if len(missing) > 20 else ""}. Add them to one of the two.'
        )
    problems += [f'{mask_of[n]}: {"; ".join(u[:5])} is in neither --classes nor --ignore' for n, u in unknown_of.items()]
    stats = {name: one for name, one in stats.items() if name not in unknown_of}
    report.print_findings(stats, mapping)
    report.print_ignored(mapping, occurring, classes, ignored)
    report.print_problems(problems, len(image_of), skip_bad)
    return stats, mapping


def read_all(image_of: dict[str, Path], mask_of: dict[str, Path]) -> tuple[dict[str, MaskStats], list[str]]:
    """What each pair holds, and what is wrong with the others."""

    def read(name: str) -> MaskStats | str:
        if lost_in_a_list(name):
            return f'{image_of[name]}: lists of images lose the blank that {name!r} begins or ends with: rename it'
        try:
            return read_stats(image_of[name], mask_of[name])
        except ValueError as error:
            return str(error)

    found = dict(zip(image_of, in_threads(read, image_of, 'Reading', 'pairs')))
    good = {name: result for name, result in found.items() if isinstance(result, MaskStats)}
    return good, [result for result in found.values() if isinstance(result, str)]


def refuse_own_files(folder: Path, files: set[Path]) -> None:
    """Raise a ValueError where a folder that is to be written has files of the user's in it."""
    own = next((file for file in sorted(files) if folder.resolve() in file.resolve().parents), None)
    if own:
        raise ValueError(f'The class ids go to {folder}, and {own} is there: give another --name, and your files stay.')


def write_masks(mapping: ClassMapping, mask_of: dict[str, Path], folder: Path) -> None:
    """Write each mask's class ids as a PNG of one channel."""

    def write(name: str) -> None:
        out = folder / f'{name}.png'
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mapping.ids(*read_mask(mask_of[name]))).save(out)

    in_threads(write, mask_of, 'Writing class ids', 'masks')


def draw_sheet(
    path: Path, mapping: ClassMapping, image_of: dict[str, Path], mask_of: dict[str, Path], train: list[str], val: list[str]
) -> None:
    """Draw some images under their masks, evenly taken from both parts."""
    pictures, titles = [], []
    for title, names in (('train', train), ('val', val)):
        for i in sorted({int(i) for i in np.linspace(0, len(names) - 1, min(len(names), NUM_SHEET // 2))}):
            image = DEFAULT_READER.read(image_of[names[i]])[..., ::-1]
            ids = mapping.ids(*read_mask(mask_of[names[i]]))
            present = [k for k in range(len(mapping.classes)) if (ids == k).any()]
            coloured = overlay(image, ids, mapping.palette)
            pictures.append(with_legend(coloured, mapping.classes, mapping.palette, present))
            titles.append(f'{title}: {names[i]}')
    Image.fromarray(sheet(pictures, titles)).save(path)
