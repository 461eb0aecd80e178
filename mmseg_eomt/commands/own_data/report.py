"""What ``init_dataset`` prints of a user's data."""

import shlex
from collections import Counter
from pathlib import Path

from mmengine.config import Config

from mmseg_eomt.commands.own_data.class_mapping import IGNORED, WHITES, ClassMapping
from mmseg_eomt.commands.own_data.mask_stats import MaskStats, Totals, pack, show, totals
from mmseg_eomt.commands.own_data.pairing import Pairs
from mmseg_eomt.data.check import describe
from mmseg_eomt.data.images import ImageInfo
from mmseg_eomt.data.masks import describe_turned

RARE = 1e-4  # fraction of the pixels


def print_pairs(pairs: Pairs) -> None:
    """Print which files belong together."""
    kind = f'…{pairs.image_suffix}' if pairs.image_suffix else 'of several types'
    print(f'{len(pairs.masks)} images ({kind}) with masks (…{pairs.mask_suffix})')
    for title, names in (('images without a mask', pairs.lone_images), ('masks without an image', pairs.lone_masks)):
        if names:
            print(f'  {len(names)} {title}, skipped: {", ".join(names[:5])}{", …" if len(names) > 5 else ""}')
    for suffix, count in pairs.other_masks.items():
        print(f'  {count} further masks end in {suffix}: --mask-suffix {suffix} takes these')


def print_findings(stats: dict[str, MaskStats], mapping: ClassMapping) -> None:
    """Print sizes, the kind of masks and a table of the classes."""
    turned = [(name, ImageInfo(one.size, one.orientation)) for name, one in stats.items() if one.orientation != 1]
    if turned:
        print(f'  {describe_turned(turned)}')
    sizes = Counter(one.size for one in stats.values()).most_common()
    shown = [f'{width}×{height} ({count})' for (height, width), count in sizes[:4]]
    print(f'  sizes: {", ".join(shown)}{f" and {len(sizes) - 4} others" if len(sizes) > 4 else ""}')
    print(f'  masks: {_kind(stats, mapping)}')
    occurring = totals(stats.values())
    _print_table(mapping, occurring)
    total = sum(pixels for pixels, _ in occurring.values())
    trained = {value: mapping.classes[new] for value, new in mapping.new_ids.items() if new != IGNORED}
    rare = [trained[value] for value, (pixels, _) in occurring.items() if value in trained and pixels < RARE * total]
    if rare:
        print(f'  rare: {", ".join(rare)}. If these are stray values and no classes, name the classes or --ignore them.')
    unlabelled = sum(trained.keys().isdisjoint(one.pixels) for one in stats.values())
    if unlabelled:
        print(f'  {unlabelled} masks have no labelled pixel: nothing is learnt from their images.')


def _kind(stats: dict[str, MaskStats], mapping: ClassMapping) -> str:
    if mapping.colours:
        return 'a colour for each class'
    if any(one.channels == 3 for one in stats.values()):
        return 'ids as shades of grey in three channels'
    return 'ids with a palette' if any(one.palette for one in stats.values()) else 'ids in one channel'


def _print_table(mapping: ClassMapping, occurring: Totals) -> None:
    """Print a row for each class, and for each ignored value that occurs."""
    total = sum(pixels for pixels, _ in occurring.values()) or 1
    rows = [('id', 'in masks', 'name', 'pixels', 'images')]
    for stored, new in sorted(mapping.new_ids.items(), key=lambda item: item[1]):
        pixels, images = occurring.get(stored, (0, 0))
        if new != IGNORED or pixels:
            name = '(ignored)' if new == IGNORED else mapping.classes[new]
            rows.append((str(new), show(stored, mapping.colours), name, f'{pixels / total:.2%}', str(images)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_ignored(mapping: ClassMapping, occurring: Totals, classes: dict | None, ignored: set) -> None:
    """Print what ``--ignore`` names in vain, and what 255 was taken for where the user did not say it."""
    absent = [show(value, mapping.colours) for value in sorted(map(pack, ignored)) if value not in occurring]
    if absent:
        print(f'  no mask holds {"; ".join(absent)}, which --ignore names')
    if mapping.colours:
        return
    for white in set(WHITES) & occurring.keys() - ignored - set((classes or {}).values()):
        new = mapping.new_ids[white]
        if new == IGNORED:
            fix = f'give a file of classes in which a line "NAME {white}" names it'
            print(f'  {white} is not trained on, as usual. If it is a class, {fix}.')
        elif 1 in occurring:
            print(f'  {white} is {mapping.classes[new]}, as 1 is. If it is not to be trained on, add --ignore {white}.')


def print_problems(problems: list[str], num_pairs: int, skip: bool) -> None:
    """Print what is wrong; raise a ValueError unless such pairs are to be skipped."""
    if not problems:
        return
    if not skip:
        raise ValueError(describe(problems, num_pairs) + '\nMend them, or give --skip-bad to skip them.')
    print(describe(problems, num_pairs) + '\n  They are skipped.')


def print_split(train: list[str], val: list[str], stats: dict[str, MaskStats], mapping: ClassMapping) -> None:
    """Print the numbers of images, and which classes training would never see."""
    print(f'{len(train)} images to train on, {len(val)} to evaluate on')
    for title, names in (('training', train), ('evaluation', val)):
        seen = {mapping.new_ids[value] for name in names for value in stats[name].pixels}
        absent = [name for i, name in enumerate(mapping.classes) if i not in seen]
        if absent:
            print(f'  not in the images for {title}: {", ".join(absent)}')


def print_next(config_file: Path, data_dir: Path, images: Path) -> None:
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
    config_name, checkpoint, folder = (shlex.quote(str(path)) for path in (config_file, last, images))
    print(f'  {train} {config_name}')
    print(f'  {predict} {config_name} {checkpoint} {folder} --out predictions')
