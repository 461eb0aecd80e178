"""Every file of a run's data, looked at before the run."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from tqdm import tqdm

from mmseg_eomt.data.files import ids_of, image_size, read_mask
from mmseg_eomt.engine.checks import is_training, segmentor_of

NUM_SHOWN = 10
STAMP = 'data_checked.txt'  # in the work directory
PROBLEMS = 'data_problems.txt'


@dataclass(frozen=True)
class LabelRule:
    """What a dataset makes of the ids in its mask files.

    Attributes:
        num_classes: K; ids from 0 to K - 1 are classes.
        ignore_index: Id that is not trained on.
        reduce_zero_label: Whether id 0 is ignored and the others are counted from 1.
        label_map: New ids of old ones, or None.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None

    def unknown(self, ids: np.ndarray) -> list[int]:
        """Those of the stored ids that are neither a class nor ignored."""
        unknown = []
        for stored in map(int, ids):
            new = stored
            if new == 65535:  # the toolbox reads a byte of it
                new = 255
            if self.reduce_zero_label:
                new = 255 if new in (0, 255) else new - 1
            new = (self.label_map or {}).get(new, new)
            if new != self.ignore_index and not 0 <= new < self.num_classes:
                unknown.append(stored)
        return unknown


File = tuple[str, str | None, LabelRule | None]  # image, mask, rule


def problem_of(image: str, mask: str | None, rule: LabelRule | None) -> str | None:
    """What is wrong with an image and its mask, in a sentence that begins with the file, or None.

    Without a rule, the values of the mask are not looked at.
    """
    try:
        size = image_size(image)
        if mask is None:
            return None
        values, _ = read_mask(mask)
    except ValueError as error:
        return str(error)
    if values.shape[:2] != size:
        shown = '{1}×{0}'.format(*values.shape), '{1}×{0}'.format(*size)
        return f'{mask}: the mask is {shown[0]} pixels, but its image {image} is {shown[1]}'
    if rule is None:
        return None
    if values.ndim == 3:
        return f'{mask}: the mask holds colours, not class ids (tools/init_dataset.py makes ids of them)'
    unknown = rule.unknown(ids_of(values))
    if unknown:
        shown = ', '.join(map(str, unknown[:5])) + (', …' if len(unknown) > 5 else '')
        first = ' after reduce_zero_label' if rule.reduce_zero_label else ''
        return (
            f'{mask}: id {shown} is neither a class (0 to {rule.num_classes - 1}{first}) nor {rule.ignore_index}, '
            f'which is ignored'
        )
    return None


def problems_of(files: list[File], title: str) -> Iterator[str]:
    """The problems among images, masks and their rules, with a progress bar; reading takes as many threads as cores."""
    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda file: problem_of(*file), files)
        yield from filter(None, tqdm(found, title, len(files), unit='images', delay=2, disable=not is_main_process()))


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Look at every image and mask of training and validation before the first iteration.

    It stops the run for files that are missing, cut short or no images, masks of another size than their image, and ids that
    are neither a class nor ignored, naming the files. Masks are decoded, images only where it takes that to see whether they
    are whole; processes share the work. What was found in order is noted in the work directory, and not read again until
    a file changes. What is not read from plain files by the toolbox's LoadImageFromFile and LoadAnnotations is left out, and
    so are the ids where the pipeline has transforms of neither the toolbox nor the plugin.

    Args:
        splits: What to check, of ``'train'`` and ``'val'``; nothing for ``()``. Default: both.

    Raises:
        ValueError: If a file has a problem; ``data_problems.txt`` in the work directory names them all.
    """

    priority = 'VERY_HIGH'  # before weights are downloaded

    def __init__(self, splits: Sequence[str] = ('train', 'val')) -> None:
        if not set(splits) <= {'train', 'val'}:
            raise ValueError(f"splits takes 'train' and 'val', got {splits!r}.")
        self.splits = splits

    def before_run(self, runner: Runner) -> None:
        """Check the data of a training run."""
        if not is_training(runner):
            return
        loops = [getattr(runner, f'{split}_loop') for split in self.splits]
        datasets = [loop.dataloader.dataset for loop in loops if hasattr(loop, 'dataloader')]
        head = getattr(segmentor_of(runner), 'decode_head', None)
        num_classes, ignored = getattr(head, 'num_classes', None), getattr(head, 'ignore_index', 255)
        files = [file for dataset in datasets for file in files_of(dataset, num_classes, ignored)]
        stamp = Path(runner.work_dir) / STAMP
        digest = _digest(files)
        seen = stamp.read_text() if stamp.is_file() else ''
        own = [] if seen == digest else files[get_rank() :: get_world_size()]
        found = [problem for part in all_gather_object(list(problems_of(own, 'Checking data'))) for problem in part]
        full = Path(runner.work_dir) / PROBLEMS
        if not found:
            if is_main_process():
                stamp.write_text(digest)
                full.unlink(missing_ok=True)
            return
        if is_main_process():
            full.write_text('\n'.join(found) + '\n', encoding='utf-8')
        raise ValueError(describe(found, len(files)) + f'\nAll of them are in {full}.')


def describe(problems: list[str], num_files: int) -> str:
    """A few of the problems, for a message."""
    lines = [f'{len(problems)} of {num_files} images cannot be used as they are:', *problems[:NUM_SHOWN]]
    if len(problems) > NUM_SHOWN:
        lines.append(f'… and {len(problems) - NUM_SHOWN} more')
    return '\n  '.join(lines)


def files_of(dataset: object, num_classes: int | None, ignore_index: int) -> Iterator[File]:
    """Image, mask and rule of every sample that is read from plain files, however datasets are wrapped.

    Args:
        dataset: Of a dataloader.
        num_classes: The head's. Where it is None, the dataset's.
        ignore_index: The head's.
    """
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from files_of(part, num_classes, ignore_index)
    elif not isinstance(dataset, BaseDataset):
        if hasattr(dataset, 'dataset'):  # RepeatDataset and the like
            yield from files_of(dataset.dataset, num_classes, ignore_index)
    elif not getattr(dataset, 'backend_args', None) and _reader(dataset, 'LoadImageFromFile'):
        annotations = _reader(dataset, 'LoadAnnotations')
        # a transform of the user's may make other ids of those in the files
        known = all(_is_stock(step) for step in dataset.pipeline.transforms)
        classes = num_classes or len(dataset.metainfo.get('classes') or ())
        rule = None
        if annotations and known and classes:
            zero, label_map = (getattr(dataset, name, None) for name in ('reduce_zero_label', 'label_map'))
            rule = LabelRule(classes, ignore_index, bool(zero), label_map)
        for i in range(len(dataset)):
            sample = dataset.get_data_info(i)
            if 'img_path' in sample and not re.match(r'\w\w+:', sample['img_path']):  # s3://…
                yield sample['img_path'], sample.get('seg_map_path') if annotations else None, rule


def _is_stock(step: object) -> bool:
    return type(step).__module__.split('.')[0] in ('mmcv', 'mmseg', 'mmengine', 'mmseg_eomt')


def _reader(dataset: BaseDataset, name: str) -> object | None:
    """The toolbox's own transform of a name, if the dataset reads plain files with it, as they are stored."""
    for step in dataset.pipeline.transforms:
        as_stored = getattr(step, 'imdecode_backend', None) == 'pillow' or name != 'LoadAnnotations'
        if type(step).__name__ == name and _is_stock(step) and as_stored and not getattr(step, 'backend_args', None):
            return step
    return None


def _digest(files: Iterable[File]) -> str:
    """Changes with a name, size or time of a file, or with a rule."""
    digest = hashlib.sha256()
    for image, mask, rule in files:
        for path in (image, mask):
            state = os.stat(path) if path and os.path.isfile(path) else None
            digest.update(repr((path, state and (state.st_size, state.st_mtime_ns), rule)).encode())
    return digest.hexdigest()
