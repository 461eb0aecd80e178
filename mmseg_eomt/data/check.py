"""The check of all images and masks that a run reads, before its first iteration."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from mmseg.registry import HOOKS
from tqdm import tqdm

from mmseg_eomt.data.images import DEFAULT_READER, ImageInfo, Reader, inspect_image
from mmseg_eomt.data.masks import count_values, describe_turned, read_pair
from mmseg_eomt.whole import whole_file

T = TypeVar('T')
R = TypeVar('R')
SPLITS = ('train', 'val', 'test')
NUM_SHOWN = 10
CHECKS = b'2'  # to be raised when more is checked than before: stamps of earlier versions end
STAMP, NUM_STAMPS = 'data_checked.txt', 12  # in the work directory: a line for each of the last splits that were in order
PROBLEMS = 'data_problems.txt'


@dataclass(frozen=True)
class LabelRule:
    """What a dataset makes of the ids in its mask files.

    Attributes:
        num_classes: K; ids from 0 to K - 1 are classes.
        ignore_index: Id that is not trained on.
        reduce_zero_label: Whether id 0 is ignored and the others are counted from 1.
        label_map: New ids of old ones, or None.
        known: Ids that the files may hold, where the dataset lists them: its labels need not be classes then.
    """

    num_classes: int
    ignore_index: int = 255
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None
    known: tuple[int, ...] | None = None

    def unknown(self, ids: np.ndarray) -> list[int]:
        """Those of the stored ids that are neither a class nor ignored."""
        unknown = []
        for stored in map(int, ids):
            new = stored
            if new == 65535:  # the toolbox reads a byte of it
                new = 255
            if self.known is not None:
                unknown += [] if new in self.known else [stored]
                continue
            if self.reduce_zero_label:
                new = 255 if new in (0, 255) else new - 1
            new = (self.label_map or {}).get(new, new)
            if new != self.ignore_index and not 0 <= new < self.num_classes:
                unknown.append(stored)
        return unknown


class Sample(NamedTuple):
    """A sample of a dataset: its image, its mask if that is read, what the ids may be if that is known, and the reader."""

    image: str
    mask: str | None = None
    rule: LabelRule | None = None
    reader: Reader = DEFAULT_READER


class Finding(NamedTuple):
    """What is wrong with a sample, if anything, in a sentence that begins with the file; its image if it has a mask."""

    problem: str | None = None
    image: ImageInfo | None = None


def check_sample(sample: Sample) -> Finding:
    """Read a sample's files. Without a rule, the values of the mask are not looked at."""
    try:
        if sample.mask is None:
            inspect_image(sample.image, sample.reader)
            return Finding()
        image, values, _ = read_pair(sample.image, sample.mask, sample.reader)
    except ValueError as error:
        return Finding(str(error))
    return Finding(_wrong_ids(sample.mask, values, sample.rule) if sample.rule else None, image)


def _wrong_ids(mask: str, values: np.ndarray, rule: LabelRule) -> str | None:
    if values.ndim == 3:
        return f'{mask}: the mask holds colours, not class ids (tools/init_dataset.py makes ids of them)'
    if 1 in values.shape:
        return f'{mask}: the mask has a side of one pixel, and the toolbox reads no such masks'
    ids, _ = count_values(values)
    if not (ids == ids.round()).all():
        return f'{mask}: the mask holds numbers with fractions ({values.dtype}), not class ids'
    unknown = rule.unknown(ids)
    if unknown:
        shown = ', '.join(map(str, unknown[:5])) + (', …' if len(unknown) > 5 else '')
        if rule.known is not None:
            known = ', '.join(map(str, rule.known[:5])) + (', …' if len(rule.known) > 5 else '')
            return f'{mask}: id {shown} is none of those that the dataset knows ({known}): check its preset or label_map'
        first = ' after reduce_zero_label' if rule.reduce_zero_label else ''
        return (
            f'{mask}: id {shown} is neither a class (0 to {rule.num_classes - 1}{first}) nor {rule.ignore_index}, '
            f'which is ignored'
        )
    return None


def check_samples(samples: list[Sample]) -> list[tuple[str, Finding]]:
    """Images of samples with what was found, where that is a problem or a turned image."""
    found = zip(samples, in_threads(check_sample, samples, 'Checking data', 'images'))
    return [(sample.image, one) for sample, one in found if one.problem or (one.image and one.image.orientation != 1)]


def in_threads(function: Callable[[T], R], items: Collection[T], title: str, unit: str) -> list[R]:
    """A function's results for files to read or write, with a bar; as many threads as cores."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        results = pool.map(function, items)
        return list(tqdm(results, title, len(items), unit=unit, delay=2, disable=not is_main_process()))


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Look at every image and mask that a run will read, before its first iteration: of training, validation or test.

    It stops the run for files that are missing, cut short or not to be read, masks of another size than their image or saved
    with loss, and ids that are neither a class nor ignored, naming the files. It counts the images that the reader turns by
    their Exif orientation, which it does not do to masks. Masks are decoded, images only where it takes that to know that
    the reader takes them; processes share the work. What was found in order is noted in the work directory, and not read
    again until a file changes. What is not read from plain files by the toolbox's LoadImageFromFile and LoadAnnotations is
    skipped, and so are the ids where the pipeline has transforms of neither the toolbox nor the plugin.

    Args:
        splits: What to check, of ``'train'``, ``'val'`` and ``'test'``; nothing for ``()``. Default: all.

    Raises:
        ValueError: If a file has a problem; ``data_problems.txt`` in the work directory names them all.
    """

    priority = 'VERY_HIGH'  # before weights are downloaded

    def __init__(self, splits: Sequence[str] = SPLITS) -> None:
        if not set(splits) <= set(SPLITS):
            raise ValueError(f'splits takes {", ".join(map(repr, SPLITS))}, got {splits!r}.')
        self.splits = splits

    def before_run(self, runner: Runner) -> None:
        """Check the data of a training run."""
        if _is_training(runner):
            self._check(runner, train=runner.train_loop, val=runner.val_loop)

    def before_val(self, runner: Runner) -> None:
        """Check the data where nothing is trained, once the checkpoint is known to fit."""
        if not _is_training(runner):
            self._check(runner, val=runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """See :meth:`before_val`."""
        self._check(runner, test=runner.test_loop)

    def _check(self, runner: Runner, **loops: BaseLoop | None) -> None:
        """Look at the data of loops, by their split."""
        splits = {split: _files_of_loop(runner, loop) for split, loop in loops.items() if loop and split in self.splits}
        stamp, full = (Path(runner.work_dir) / name for name in (STAMP, PROBLEMS))
        lines = stamp.read_text(encoding='utf-8', errors='replace').splitlines() if stamp.is_file() else []
        seen = dict(line.partition(' ')[::2] for line in lines)  # digest, and what to say of the split
        problems = []
        for files in splits.values():
            digest = _digest(files)
            if digest not in seen:
                own = check_samples(files[get_rank() :: get_world_size()])
                found = [one for part in all_gather_object(own) for one in part]
                problems += [one.problem for _, one in found if one.problem]
                turned = [(image, one.image) for image, one in found if not one.problem]
                seen[digest] = describe_turned(turned) if turned else ''
            if seen[digest]:
                runner.logger.warning(seen[digest])
        if is_main_process():
            _note(stamp, full, seen, problems)
        if problems:
            num_files = sum(map(len, splits.values()))
            raise ValueError(describe(problems, num_files) + f'\nAll of them are in {full}.')


def _note(stamp: Path, full: Path, seen: dict[str, str], problems: list[str]) -> None:
    """Write down what need not be read again, or all problems."""
    if problems:
        with whole_file(full) as new:
            new.write_text('\n'.join(problems) + '\n', encoding='utf-8')
        return
    full.unlink(missing_ok=True)
    lines = [f'{digest} {note}' for digest, note in seen.items()][-NUM_STAMPS:]
    with whole_file(stamp) as new:
        new.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _is_training(runner: Runner) -> bool:
    """Whether ``Runner.train`` called the hook: only it builds the optimizer."""
    return isinstance(runner.optim_wrapper, OptimWrapper)


def _files_of_loop(runner: Runner, loop: BaseLoop) -> list[Sample]:
    """All files that a loop reads. What is ignored is the loss's in training, and the metric's in evaluation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    head = getattr(model, 'decode_head', None)
    metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', ())
    ignored = [part.ignore_index for part in (*metrics, head) if hasattr(part, 'ignore_index')]
    return list(samples_of(loop.dataloader.dataset, getattr(head, 'num_classes', None), (*ignored, 255)[0]))


def describe(problems: list[str], num_files: int) -> str:
    """A few of the problems, for a message."""
    lines = [f'{len(problems)} of {num_files} images cannot be used as they are:', *problems[:NUM_SHOWN]]
    if len(problems) > NUM_SHOWN:
        lines.append(f'… and {len(problems) - NUM_SHOWN} more')
    return '\n  '.join(lines)


def samples_of(dataset: object, num_classes: int | None, ignore_index: int) -> Iterator[Sample]:
    """Image, mask and rule of every sample that is read from plain files, however datasets are wrapped.

    Args:
        dataset: Of a dataloader.
        num_classes: The head's. Where it is None, the dataset's.
        ignore_index: The head's.
    """
    for part in _unwrapped(dataset):
        loader, annotations = (_reader(part, name) for name in ('LoadImageFromFile', 'LoadAnnotations'))
        if loader is None or getattr(part, 'backend_args', None):
            continue
        reader = Reader(loader.color_type, loader.imdecode_backend)
        rule = _label_rule(part, num_classes, ignore_index) if annotations else None
        for i in range(len(part)):
            sample = part.get_data_info(i)
            if 'img_path' in sample and not re.match(r'\w\w+:', sample['img_path']):  # s3://…
                yield Sample(sample['img_path'], sample.get('seg_map_path') if annotations else None, rule, reader)


def _unwrapped(dataset: object) -> Iterator[BaseDataset]:
    """The datasets inside concatenations, repetitions and the like."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _unwrapped(part)
    elif isinstance(dataset, BaseDataset):
        yield dataset
    elif hasattr(dataset, 'dataset'):
        yield from _unwrapped(dataset.dataset)


def _label_rule(dataset: BaseDataset, num_classes: int | None, ignore_index: int) -> LabelRule | None:
    """What ids a dataset's masks may hold; None where a transform of the user's may make others of those in the files."""
    classes = num_classes or len(dataset.metainfo.get('classes') or ())
    if not classes or not all(map(_is_stock, _steps(dataset.pipeline))):
        return None
    zero, label_map, known = (getattr(dataset, name, None) for name in ('reduce_zero_label', 'label_map', 'known_ids'))
    return LabelRule(classes, ignore_index, bool(zero), label_map, known)


def _is_stock(step: object) -> bool:
    return type(step).__module__.split('.')[0] in ('mmcv', 'mmseg', 'mmengine', 'mmseg_eomt')


def _steps(pipeline: Any) -> Iterator[object]:
    """Transforms of a pipeline, and those inside of one that holds pipelines, such as test-time augmentation."""
    for step in pipeline.transforms:
        yield step
        inner = getattr(step, 'subroutines', None) or getattr(step, 'transforms', None)
        for part in inner if isinstance(inner, list) else [inner]:
            if type(part).__name__ == 'Compose' and _is_stock(part):  # mmengine has one, and mmcv another
                yield from _steps(part)


def _reader(dataset: BaseDataset, name: str) -> Any:
    """The toolbox's own transform of a name, if the dataset reads plain files with it, as they are stored; or None."""
    for step in _steps(dataset.pipeline):
        as_stored = getattr(step, 'imdecode_backend', None) == 'pillow' or name != 'LoadAnnotations'
        if type(step).__name__ == name and _is_stock(step) and as_stored and not getattr(step, 'backend_args', None):
            return step
    return None


def _digest(files: Iterable[Sample]) -> str:
    """Changes with a name, size or time of a file, with a rule or reader, and with what is checked."""
    digest = hashlib.sha256(CHECKS)
    for file in files:
        for path in (file.image, file.mask):
            state = os.stat(path) if path and os.path.isfile(path) else None
            digest.update(repr((path, state and (state.st_size, state.st_mtime_ns), *file[2:])).encode())
    return digest.hexdigest()
