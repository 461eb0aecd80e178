"""Thresholds of anomaly scores: calibrated on images at a rate, and kept with the checkpoint that they are of."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_eomt.anomaly.metrics.counts import PixelScores
from mmseg_eomt.whole import whole_file

SUFFIX = '.anomaly.json'
FORMAT = 1
# two significant digits: 1.0e-6, 1.1e-6, … 0.99
FALSE_RATES = [round(digits * 10.0 ** (power - 1), 8 - power) for power in range(-6, 0) for digits in range(10, 100)]
TRUE_RATES = [*(round(0.01 * i, 2) for i in range(1, 100)), 0.995, 0.999, 1.0]
FORMS = 'fpr=0.01 (share of clean pixels), tpr=0.95 (share of anomalous pixels), best-f1, or a score such as -0.3'


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold is chosen.

    Attributes:
        kind: ``'fpr'``, ``'tpr'``, ``'best-f1'`` or ``'value'``.
        number: The rate, or the value; NaN for ``'best-f1'``.
        dataset: Name of the images that it is calibrated on, where there are several; else None.
    """

    kind: str
    number: float = math.nan
    dataset: str | None = None

    @classmethod
    def parse(cls, text: str) -> 'ThresholdRule':
        """Read ``'fpr=0.01'``, ``'tpr=0.95'``, ``'best-f1'``, also with a dataset as in ``'tpr=0.95@NAME'``, or a number.

        Raises:
            ValueError: If it is of no such form, or a rate is not between 0 and 1.
        """
        found = re.fullmatch(r'(?:(fpr|tpr)=([\d.eE+-]+)|(best-f1))(?:@(.+))?', text)
        try:
            if found is None:
                rule = cls('value', float(text))
            else:
                rule = cls(found[1] or found[3], float(found[2] or math.nan), found[4])
        except ValueError:
            rule = cls('none')
        rate_fits = rule.kind not in ('fpr', 'tpr') or 0 < rule.number <= 1
        if rule.kind == 'none' or not rate_fits or (rule.kind == 'value' and not math.isfinite(rule.number)):
            raise ValueError(f'A threshold is {FORMS}, with a rate above 0 and up to 1; got {text!r}.')
        return rule

    def __str__(self) -> str:
        if self.kind == 'value':
            return f'{self.number:g}'
        name = self.kind if self.kind == 'best-f1' else f'{self.kind}={self.number:g}'
        return f'{name}@{self.dataset}' if self.dataset else name


def calibration_file(checkpoint: str, folder: str | Path) -> Path:
    """Where the thresholds of a checkpoint are kept: beside a local one, else in a folder under a name like its own."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path.resolve()  # a name, where '.' has none
        return path.with_name(path.name + SUFFIX)
    if path.is_file():
        return path.with_name(path.stem + SUFFIX)
    name = re.sub(r'[^\w.-]+', '_', checkpoint.split('://')[-1])
    return Path(folder) / (name + SUFFIX)


class Calibration:
    """Thresholds of the anomaly scores of one checkpoint.

    Of clean images, without anomalies, it holds for each score the thresholds at false positive rates from 1e-6 to 0.99; of
    labelled ones also those at true positive rates, and that of the best F1. ``score >= threshold`` is anomalous.

    Args:
        checkpoint: Its name, for the reader.
        digest: SHA-256 of its file.
    """

    def __init__(self, checkpoint: str, digest: str) -> None:
        self.checkpoint = checkpoint
        self.digest = digest
        self.scores: dict[str, dict[str, Any]] = {}  # 'clean': an entry, 'labelled': entries by dataset

    @classmethod
    def read(cls, path: str | Path, digest: str) -> 'Calibration':
        """Read a file.

        Args:
            path: Of :func:`calibration_file`.
            digest: SHA-256 of the checkpoint that is to be used.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is none.
            OtherCheckpoint: If it is of another checkpoint.
        """
        try:
            content = json.loads(Path(path).read_text(encoding='utf-8'))
            calibration = cls(content['checkpoint']['name'], content['checkpoint']['sha256'])
            calibration.scores = {name: dict(kinds) for name, kinds in content['scores'].items()}
            known = content['format'] == FORMAT
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path} holds no thresholds of anomaly scores ({error!r}): delete it, and calibrate again.'
            ) from None
        if not known:
            raise ValueError(f'{path} is of format {content["format"]}, and this version reads {FORMAT}: calibrate again.')
        if calibration.digest != digest:
            raise OtherCheckpoint(
                f'{path} is of another checkpoint, {calibration.checkpoint} with SHA-256 {calibration.digest[:12]}…; this '
                f'one has {digest[:12]}…: calibrate again.'
            )
        return calibration

    @classmethod
    def update(cls, path: str | Path, checkpoint: str, digest: str) -> 'Calibration':
        """Read a file to add to it; begin an empty one if there is none, or it is of another checkpoint.

        Raises:
            ValueError: If the file holds something else, which is not overwritten.
        """
        try:
            return cls.read(path, digest)
        except (FileNotFoundError, OtherCheckpoint):
            return cls(checkpoint, digest)

    def add(self, score: str, pixels: PixelScores, dataset: str, images: int, settings: str = '') -> None:
        """Add the thresholds of a score on some images; earlier ones of the same kind and dataset are replaced.

        Args:
            score: Its name, as ``str(score)``.
            pixels: Scores of all pixels of the images; if none of them is anomalous, they are the clean ones.
            dataset: Name of the images.
            images: Their number.
            settings: How they were prepared (:func:`.settings_digest`).

        Raises:
            ValueError: If no pixel is an inlier.
        """
        ranking = pixels.ranking()
        inliers, anomalies = int(ranking.inliers[-1]), int(ranking.outliers[-1])
        if not inliers:
            raise ValueError(f'{dataset} has no pixel of a known class to calibrate the threshold on.')
        index = np.searchsorted(ranking.fpr, FALSE_RATES, side='right') - 1
        entry: dict[str, Any] = dict(dataset=dataset, images=images, inliers=inliers, anomalies=anomalies)
        entry['settings'] = settings
        entry['fpr'] = ranking.score(index).tolist()
        kinds = self.scores.setdefault(score, {})
        if not anomalies:
            kinds['clean'] = entry
            return
        metrics = ranking.metrics()
        entry['tpr'] = ranking.score(np.searchsorted(ranking.tpr, TRUE_RATES)).tolist()
        entry['best-f1'] = dict(f1=metrics['F1'], threshold=metrics['threshold'])
        kinds.setdefault('labelled', {})[dataset] = entry

    def save(self, path: str | Path) -> None:
        """Write it, whole."""
        content = dict(
            format=FORMAT,
            checkpoint=dict(name=self.checkpoint, sha256=self.digest),
            false_positive_rates=FALSE_RATES,
            true_positive_rates=TRUE_RATES,
            scores=self.scores,
        )
        with whole_file(path) as new:
            new.write_text(json.dumps(content), encoding='utf-8')

    def threshold(self, score: str, rule: ThresholdRule) -> float:
        """The threshold that a rule chooses.

        A rate between two that are kept is taken as the stricter one: no more false positives, and no fewer true ones, than
        asked for.

        Args:
            score: Name of the score.
            rule: Of any kind.

        Raises:
            ValueError: If that is not calibrated, or the rate is finer than the number of pixels tells.
        """
        if rule.kind == 'value':
            return rule.number
        entry = self._entry(score, rule)
        if rule.kind == 'best-f1':
            return entry['best-f1']['threshold']
        if rule.kind == 'tpr':
            return entry['tpr'][int(np.searchsorted(TRUE_RATES, rule.number * (1 - 1e-9)))]
        if rule.number < FALSE_RATES[0] or rule.number * entry['inliers'] < 1:
            raise ValueError(
                f'{rule} is less than one of the {entry["inliers"]:,} pixels of {entry["dataset"]}, or than '
                f'{FALSE_RATES[0]:g}: ask for a higher rate, or calibrate on more images.'
            )
        return entry['fpr'][int(np.searchsorted(FALSE_RATES, rule.number * (1 + 1e-9), side='right')) - 1]

    def settings(self, score: str, rule: ThresholdRule) -> str:
        """How the images were prepared that a rule's threshold is of; empty if that is not known."""
        return '' if rule.kind == 'value' else self._entry(score, rule).get('settings', '')

    def _entry(self, score: str, rule: ThresholdRule) -> dict[str, Any]:
        """What a rule is read from."""
        kinds = self.scores.get(score, {})
        labelled, clean = kinds.get('labelled', {}), kinds.get('clean')
        if rule.kind == 'fpr' and clean and rule.dataset in (None, clean['dataset']):
            return clean
        if rule.dataset in labelled:
            return labelled[rule.dataset]
        if rule.kind != 'fpr' and rule.dataset is None and len(labelled) == 1:
            return next(iter(labelled.values()))
        names = [*labelled, *([clean['dataset']] if clean and rule.kind == 'fpr' else [])]
        hint = f'; there is {", ".join(f"{rule.kind}@{name}" for name in names)}' if names else ''
        where = ' on one dataset' if labelled and not rule.dataset else ''
        raise MissingThreshold(f'The score {score} of {self.checkpoint} is not calibrated for {rule}{where}{hint}.')


class MissingThreshold(ValueError):
    """A rule asks for what was not calibrated."""


class OtherCheckpoint(ValueError):
    """A file has the thresholds of another checkpoint."""
