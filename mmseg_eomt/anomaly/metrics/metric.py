"""The metrics of road anomalies as a metric of the toolbox."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS

from mmseg_eomt.anomaly.metrics.components import PRESETS, FrameComponents, match_components, pool_components
from mmseg_eomt.anomaly.metrics.counts import PixelScores, ScoreCounts, SortedScores, check_labels
from mmseg_eomt.anomaly.metrics.kept import Image, KeptImages
from mmseg_eomt.anomaly.scores import parse_scores
from mmseg_eomt.anomaly.segmentor import anomaly_maps

COMPONENT_METRICS = ('sIoU', 'PPV', 'mean_F1')


@METRICS.register_module()
class AnomalyMetric(BaseMetric):
    """How well anomaly scores find anomalous pixels and components, pooled over all images of a split.

    The labels are those of an :class:`.AnomalyDataset` or :class:`.HeldOutClassesDataset`: 0 inlier, 1 anomaly, 255 ignored.
    Images without an anomaly count. For each score: ``AP``, ``AUROC``, ``FPR95`` and ``F1``, the best one, in per cent, and
    its ``threshold`` (a pixel is predicted where ``score >= threshold``), as ``AP/rba``; with components also ``sIoU``,
    ``PPV`` and ``mean_F1`` at this threshold. They are NaN, with a warning, for a split without any anomaly or inlier.

    Any number of processes gives the same numbers: images that a sampler repeats at the end, so that all processes have as
    many, count once.

    Args:
        scores: Names, as of :mod:`~mmseg_eomt.anomaly.scores`. Default: ``('rba',)``.
        components: ``'anomaly'``: components of at least 500 predicted and 100 true pixels, as SegmentMeIfYouCan's anomaly
            track has it; ``'obstacle'``: of 50 and 10. It needs the threshold of the whole split, and so the scores of all
            pixels that count are in a temporary file until the end: 4 bytes for each pixel and score, 0.4 GB for 100 images
            of 1280×720 and one score, where ``TMPDIR`` says. The file has no name: whatever ends the process, none is left.
            Default: None, pixels only.
        exact: Keep all scores in memory (4 bytes for each pixel and score) and sort them, in place of counting them, which
            takes 67 MB per score where the model is, and is exact to 1e-4. Default: False.
        kwargs: ``collect_device``, ``prefix`` and ``collect_dir``, as of mmengine's ``BaseMetric``.

    Attributes:
        finished: By name of the score, its :class:`.PixelScores` over all images of the last evaluation, on every process:
            thresholds and curves are read from them.

    Raises:
        ValueError: If a score or the choice of components is unknown, or there is no score.
    """

    default_prefix = ''

    def __init__(
        self, scores: Sequence[str] = ('rba',), components: str | None = None, exact: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if components is not None and components not in PRESETS:
            raise ValueError(f'components is one of {", ".join(map(repr, PRESETS))} or None, got {components!r}.')
        self.scores = parse_scores(scores)
        if not self.scores:
            raise ValueError("scores of AnomalyMetric is empty: name at least one, such as ['rba'].")
        self.names = list(map(str, self.scores))
        self.sizes = PRESETS[components] if components else None
        self.kind = SortedScores if exact else ScoreCounts
        self.finished: dict[str, PixelScores] = {}
        self._kept = KeptImages()
        self.reset()

    def reset(self) -> None:
        """Forget an evaluation that was begun, as after an interruption; :meth:`evaluate` does so by itself."""
        self.results: list[dict[str, Any]] = []
        self._counts: dict[str, PixelScores] = {}
        self._num_classes = 0
        self._images = 0
        self._newest: Image | None = None
        self._kept.clear()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        Raises:
            ValueError: If an image has no labels or other ones than those of anomalies, or a score is not finite.
        """
        try:
            for sample in data_samples:
                image = self._read(sample)
                self._count_newest()
                self._newest = image
                self._images += 1
        except BaseException:
            self.reset()
            raise

    def _read(self, sample: dict) -> Image:
        path = str(sample.get('img_path'))
        if 'gt_sem_seg' not in sample:
            raise ValueError(f'{path} has no labels: the test pipeline needs LoadAnnotations, and the dataset label files.')
        maps = anomaly_maps(sample, self.names).float()
        labels = sample['gt_sem_seg']['data'][0].to(maps.device)
        self._num_classes = len(sample['seg_logits']['data'])
        with _named(path):
            check_labels(maps[0], labels)
        return Image.of(maps, labels, path)

    def _count_newest(self) -> None:
        """Count the image that was held back, which now cannot be one that the sampler has repeated to fill up."""
        image, self._newest = self._newest, None
        if image is None:
            return
        labels = image.labels[image.counted]
        with _named(image.path):
            for counts, scores in zip(self._of_all_scores().values(), image.scores):
                counts.add(scores, labels)
        if self.sizes:
            self._kept.append(image)

    def _of_all_scores(self) -> dict[str, PixelScores]:
        """What is counted in this evaluation; the last one's counts are dropped when it begins."""
        if not self._counts:
            self.finished = {}
            self._counts = {str(score): self.kind(str(score), score.inlier(self._num_classes)) for score in self.scores}
        return self._counts

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of all processes.

        Args:
            size: Number of images of the dataset.

        Returns:
            ``{'AP/rba': …}``, in per cent, thresholds in units of the score.

        Raises:
            ValueError: If there were more images than the dataset has.
        """
        rank, world_size = get_dist_info()
        try:
            self._leave_repeated_out(size, rank, world_size)
            self._count_newest()
            num_classes = torch.tensor(self._num_classes)
            all_reduce(num_classes, 'max')  # a process may have had no image
            self._num_classes = int(num_classes)
            self.finished = self._of_all_scores()
            for counts in self.finished.values():
                counts.gather()
            pixels = {name: counts.metrics() for name, counts in self.finished.items()}
            self.results = [dict(pixels=pixels, frames=self._match(pixels))]
            return super().evaluate(world_size)
        finally:
            self.reset()

    def _leave_repeated_out(self, size: int, rank: int, world_size: int) -> None:
        """Drop the newest image if the sampler repeated one: image k of a process is that at k · processes + rank."""
        surplus = max(self._images - len(range(rank, size, world_size)), 0)
        if surplus > 1 or (surplus and world_size == 1):
            raise ValueError(
                f'Process {rank} of {world_size} predicted {self._images} images of a dataset that has {size}: the '
                'sampler must be a DefaultSampler, and after an evaluation that was interrupted, reset() must be called.'
            )
        if surplus:
            self._newest = None

    def _match(self, pixels: dict[str, dict[str, float]]) -> dict[str, list[FrameComponents]]:
        """Components of this process's images at the thresholds of the whole split; empty if they are not asked for."""
        thresholds = [np.float32(values['threshold']) for values in pixels.values()]
        frames: dict[str, list[FrameComponents]] = {name: [] for name in pixels}
        if not self.sizes or np.isnan(thresholds).any():
            return frames
        for maps, labels in self._kept:
            for name, scores, threshold in zip(pixels, maps, thresholds):
                frames[name].append(match_components(scores >= threshold, labels, self.sizes))
        return frames

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Pool what each process found, and log it as a table."""
        rows = {}
        for name, pixels in results[0]['pixels'].items():
            rows[name] = {key: value if key == 'threshold' else 100 * value for key, value in pixels.items()}
            if self.sizes:
                pooled = pool_components([frame for result in results for frame in result['frames'][name]])
                rows[name].update({key: 100 * pooled[key] for key in COMPONENT_METRICS})
        self._warn()
        print_log(f'Anomalies:\n{table(rows)}', logger='current')
        return {f'{metric}/{name}': value for name, row in rows.items() for metric, value in row.items()}

    def _warn(self) -> None:
        lacks = next(iter(self.finished.values())).ranking().lacks
        if lacks:
            print_log(
                f'No {lacks} pixel is in the whole split, so that its metrics are NaN: the labels may be hidden ones of a '
                'benchmark, or the label map may be wrong (0 inlier, 1 anomaly, 255 ignored).',
                logger='current',
                level=logging.WARNING,
            )


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of metrics by score, with two digits after the point, four of ``threshold``."""
    metrics = list(next(iter(rows.values())))
    digits = {metric: 4 if metric == 'threshold' else 2 for metric in metrics}
    cells = [['score', *metrics]]
    for name, row in rows.items():
        cells.append([name, *('–' if math.isnan(row[key]) else f'{row[key]:.{digits[key]}f}' for key in metrics)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ['-' * width for width in widths])
    return '\n'.join(f'| {" | ".join(cell.rjust(width) for cell, width in zip(row, widths))} |' for row in cells)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Put the image's path before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
