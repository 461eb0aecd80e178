"""IoU of each domain and their mean."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class DomainIoUMetric(IoUMetric):
    """The toolbox's ``IoUMetric`` for each domain of a :class:`.DomainsDataset`, and the mean over domains.

    ``mIoU``, ``mAcc`` and ``aAcc`` are means over domains, each of which counts the same however many images it has: what
    ``save_best='mIoU'`` looks at. ``mIoU/DOMAIN`` and the like are those of a domain: bit for bit what ``IoUMetric``
    gives on it alone, its table of classes in the log. As there, a domain's mean is over the classes that occur in its
    labels or predictions: with SYNTHIA's labels, which have 16 of the 19 classes, over 16 if the model predicts none of
    the other three. A domain without any label that counts has no numbers, is warned of, and is not in the means.

    Any number of processes gives the same numbers: images that a sampler repeats at the end count once.

    Args:
        ignore_index: Label that does not count. Default: 255.
        iou_metrics: Of ``'mIoU'``, ``'mDice'`` and ``'mFscore'``. Default: ``('mIoU',)``.
        kwargs: ``nan_to_num``, ``beta``, ``collect_device`` and ``prefix``, as of ``IoUMetric``.

    Raises:
        ValueError: If predictions are to be written: images of two domains may have the same name.
    """

    def __init__(self, ignore_index: int = 255, iou_metrics: Sequence[str] = ('mIoU',), **kwargs: Any) -> None:
        if kwargs.get('output_dir') or kwargs.get('format_only'):
            raise ValueError('DomainIoUMetric writes no predictions: use IoUMetric with output_dir, a domain at a time.')
        super().__init__(ignore_index, list(iou_metrics), **kwargs)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Compare a batch's predictions with its labels.

        Raises:
            ValueError: If a sample has no domain.
        """
        for sample in data_samples:
            domain = sample.get('domain')
            if domain is None:
                raise ValueError(
                    f'{sample.get("img_path")} is of no domain: DomainIoUMetric needs a DomainsDataset in the dataloader.'
                )
            super().process(data_batch, [sample])
            self.results[-1] = (domain, self.results[-1])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of each domain and their means, from what all processes found, in the order of the dataset."""
        by_domain: dict[str, list] = {}
        for domain, areas in results:
            by_domain.setdefault(domain, []).append(areas)
        found = {}
        for domain, areas in by_domain.items():
            print_log(f'{domain} ({len(areas)} images):', 'current')
            found[domain] = super().compute_metrics(areas)
        empty = [domain for domain, metrics in found.items() if np.isnan(metrics['aAcc'])]
        if empty:
            print_log(
                f'No pixel of {", ".join(empty)} has a label that counts: it is excluded from the means. '
                f'Check ignore_index and the label map.',
                'current',
                logging.WARNING,
            )
        counted = [metrics for domain, metrics in found.items() if domain not in empty] or list(found.values())
        keys = sorted(next(iter(found.values())), key=lambda key: key == 'aAcc')  # the first one is save_best='auto'
        means = {key: round(float(np.mean([metrics[key] for metrics in counted])), 2) for key in keys}
        return means | {f'{key}/{domain}': metrics[key] for key in keys for domain, metrics in found.items()}
