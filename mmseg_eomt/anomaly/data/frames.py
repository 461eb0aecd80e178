"""Which images of a set lie in a folder, which label belongs to each, and which sets a folder holds."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from glob import escape, glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmseg_eomt.anomaly.data.presets import ANOMALY, PRESETS, Layout, Preset
from mmseg_eomt.data.check import in_threads
from mmseg_eomt.data.masks import count_values, read_mask

DEPTH = 2  # of folders below a root, in which sets are looked for
DIGIT = '[0-9]'
NUM_SHOWN = 3


class Frame(NamedTuple):
    """A frame's name, its image, and its label if it has one."""

    name: str
    image: str
    label: str | None


def paths_by_frame(root: Path, pattern: str) -> dict[str, str]:
    """Paths of files that fit a pattern of a :class:`.Layout`, by the name of their frame, in order."""
    found = glob(os.path.join(escape(str(root)), re.sub(r'\{\w+\}', '*', pattern)))
    named = re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>[^/]+)', _as_regex(pattern)))
    matches = ((named.fullmatch(Path(path).relative_to(root).as_posix()), path) for path in found)
    paths = {'/'.join(match.groups()): path for match, path in matches if match}
    return dict(sorted(paths.items()))


def _as_regex(pattern: str) -> str:
    return re.escape(pattern).replace(re.escape(DIGIT), DIGIT).replace(r'\*', '[^/]*')


def root_of(preset: Preset, data_root: str | Path) -> Path:
    """The folder that a preset's patterns begin at: the published one if it lies in ``data_root``, else ``data_root``."""
    root = Path(data_root)
    return root / preset.folder if preset.folder and (root / preset.folder).is_dir() else root


def frames_in(preset: Preset, root: Path) -> list[Frame]:
    """All frames of a set in a folder, with and without labels, in order of their names; none if it is not there."""
    best: list[Frame] = []
    for layout in preset.layouts:
        frames = _frames(layout, root)
        if any(frame.label for frame in frames):
            return frames
        best = best or frames
    return best


def _frames(layout: Layout, root: Path) -> list[Frame]:
    images = paths_by_frame(root, layout.images)
    labels = paths_by_frame(root, layout.labels) if images else {}
    return [Frame(name, image, labels.get(name)) for name, image in images.items()]


def published(preset: Preset, frames: list[Frame]) -> list[Frame]:
    """Those of all frames that the set's protocol evaluates, in order."""
    unlabelled = set(preset.unlabelled_at) if len(frames) == preset.num_published else set()
    kept = [frame for i, frame in enumerate(frames) if i not in unlabelled]
    return [frame for frame in kept if fits(frame, preset.frames) and not fits(frame, preset.excluded)]


def fits(frame: Frame, patterns: Iterable[str]) -> bool:
    """Whether a frame's name fits one of some patterns."""
    return any(fnmatchcase(frame.name, pattern) for pattern in patterns)


def chosen(frames: list[Frame], patterns: Sequence[str]) -> list[Frame]:
    """The frames that fit patterns.

    Raises:
        ValueError: If a pattern fits none.
    """
    lost = [pattern for pattern in patterns if not any(fnmatchcase(frame.name, pattern) for frame in frames)]
    if lost:
        raise ValueError(
            f'frames has {shown(lost)}, which no frame is called; they are called {shown([frame.name for frame in frames])}.'
        )
    return [frame for frame in frames if fits(frame, patterns)]


def shown(names: Sequence[str]) -> str:
    """Some of the names, for a message."""
    rest = f' and {len(names) - NUM_SHOWN} more' if len(names) > NUM_SHOWN else ''
    return ', '.join(names[:NUM_SHOWN]) + rest


def with_ids(labels: Sequence[str], ids: Iterable[int]) -> np.ndarray:
    """Whether each label file holds one of some stored ids, (N,) bool. All files are read, with a bar.

    Raises:
        ValueError: If a file cannot be read.
    """
    wanted = list(ids)
    reads = in_threads(lambda path: count_values(read_mask(path)[0])[0], labels, 'Looking for anomalies', 'labels')
    return np.array([bool(np.isin(values, wanted).any()) for values in reads], bool)


def anomalous(preset: Preset, frames: list[Frame]) -> list[Frame]:
    """The labelled frames that hold an anomaly."""
    labels = [frame.label or '' for frame in frames]
    held = with_ids(labels, [old for old, new in preset.label_map.items() if new == ANOMALY])
    return [frame for frame, is_held in zip(frames, held) if is_held]


def find_presets(root: str | Path) -> list[dict[str, Any]]:
    """The published sets in a folder and its subfolders, two levels deep.

    Args:
        root: A set's folder, or one that holds several.

    Returns:
        For each set ``dict(preset=…, data_root=…, num_images=…, num_classes=…)``: the arguments of :class:`.AnomalyDataset`,
        how many labelled images it has, and how many classes a model for it has. For BDD-Anomaly, the images are all those
        with labels; only the ones with an anomaly are evaluated. Sets without labels are not listed.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in _folders(Path(root), DEPTH):
        for name, preset in PRESETS.items():
            if preset.by_name and folder.resolve().name != preset.folder:
                continue
            frames = [frame for frame in published(preset, frames_in(preset, folder)) if frame.label]
            if frames:
                num_classes = len(preset.metainfo['classes'])
                one = dict(preset=name, data_root=str(folder), num_images=len(frames), num_classes=num_classes)
                found.setdefault((name, os.path.realpath(frames[0].image)), one)  # a folder below may fit as well
    return list(found.values())


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, in order; none if it is missing."""
    if not root.is_dir():
        return
    yield root
    if depth:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith('.'))
        for name in names:
            yield from _folders(root / name, depth - 1)
