"""The results of an evaluation of anomalies: one table, all numbers as JSON, and a chart of the curves."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_eomt.anomaly.metrics.counts import PixelScores
from mmseg_eomt.tables import markdown_table
from mmseg_eomt.whole import keep, kept, whole_file

POINTS = 200  # of a curve, for each of its rates
TRUE_RATE = 0.95
CAPTION = (
    'In per cent, the best of each dataset in bold; of all pixels of a dataset that are not ignored. The best F1 is reached '
    'where the score is at least the threshold beside it.'
)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: Of the metric.
        title: What stands above it.
        digits: Behind the point.
        best: 1 if more is better, −1 if less is, 0 if there is no better.
    """

    key: str
    title: str
    digits: int = 2
    best: int = 1


COLUMNS = (
    Column('AP', 'AP ↑'),
    Column('AUROC', 'AUROC ↑'),
    Column('FPR95', 'FPR95 ↓', best=-1),
    Column('F1', 'F1 ↑'),
    Column('threshold', 'at score ≥', digits=4, best=0),
    Column('sIoU', 'sIoU ↑'),
    Column('PPV', 'PPV ↑'),
    Column('mean_F1', 'mean F1 ↑'),
)


@dataclass
class DatasetResult:
    """What came out on one dataset.

    Attributes:
        name: Such as ``'road_anomaly_21'``.
        source: Where its images are from, for the reader.
        images: Their number.
        scores: Metrics of each score, as :class:`.AnomalyMetric` names them: in per cent, ``threshold`` in units of the
            score, and NaN where one is not defined.
        points: Of each score, ``{'tpr=0.95': {'threshold', 'precision', 'recall', 'fpr'}}``, as fractions.
        curves: Of each score, lists ``threshold``, ``precision``, ``recall`` and ``fpr``, as fractions.
        classes: Metrics of the classes, such as mIoU, in per cent. Only where these were evaluated, and no scores.
    """

    name: str
    source: str
    images: int
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    points: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    classes: dict[str, float] = field(default_factory=dict)

    def add_scores(self, metrics: Mapping[str, float], finished: Mapping[str, PixelScores]) -> None:
        """Take the results of an :class:`.AnomalyMetric`.

        Args:
            metrics: What its ``evaluate`` returned: ``{'AP/rba': …}``.
            finished: Its ``finished``.
        """
        for name, pixels in finished.items():
            self.scores[name] = {c.key: float(metrics[f'{c.key}/{name}']) for c in COLUMNS if f'{c.key}/{name}' in metrics}
            ranking = pixels.ranking()
            self.curves[name] = {key: np.asarray(values).tolist() for key, values in ranking.curve(POINTS).items()}
            if not ranking.lacks:
                i = int(np.searchsorted(ranking.tpr, TRUE_RATE))
                rates = dict(precision=ranking.precision[i], recall=ranking.tpr[i], fpr=ranking.fpr[i])
                point = dict(threshold=float(ranking.score(i)[0])) | {key: float(rate) for key, rate in rates.items()}
                self.points[name] = {f'tpr={TRUE_RATE}': point}

    def best_scores(self, number: int) -> list[str]:
        """The names of the scores with the highest AP, the best first; those without one are not among them."""
        known = [name for name, metrics in self.scores.items() if not math.isnan(metrics.get('AP', math.nan))]
        return sorted(known, key=lambda name: -self.scores[name]['AP'])[:number]


@dataclass
class Report:
    """The results of one model.

    Attributes:
        title: Such as the config's name.
        settings: What was evaluated, for the reader: config, checkpoint, versions, ….
        datasets: What came out on each.
        notes: Sentences on what was not evaluated, and why.
    """

    title: str
    settings: dict[str, Any]
    datasets: list[DatasetResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table, with the mIoU and the notes below it."""
        lines = [f'# Anomalies: {self.title}', '']
        lines += [f'- {name}: {_inline(value)}' for name, value in self.settings.items()]
        scored = [dataset for dataset in self.datasets if dataset.scores]
        if scored:
            lines += ['', *table(scored), '', CAPTION]
        for dataset in self.datasets:
            if dataset.classes:
                values = ', '.join(f'{name} {value:.2f} %' for name, value in dataset.classes.items())
                lines += ['', f'**{values}** on {dataset.images} images of {dataset.source}']
        lines += ['', *(f'- {note}' for note in self.notes)] if self.notes else []
        return '\n'.join(lines) + '\n'

    def as_json(self) -> dict[str, Any]:
        """All numbers but those of the curves; what is not defined is None."""
        content = asdict(self)
        for dataset in content['datasets']:
            del dataset['curves']
        return _plain(content)

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``results.md`` and ``results.json``, each whole; their paths."""
        folder = Path(folder)
        contents = {'results.md': self.markdown(), 'results.json': json.dumps(self.as_json(), indent=1) + '\n'}
        for name, content in contents.items():
            with whole_file(folder / name) as new:
                new.write_text(content, encoding='utf-8')
        return [folder / name for name in contents]


def save_result(path: Path, result: DatasetResult, key: str) -> None:
    """Keep a dataset's result, so that a run which is stopped goes on after it.

    Args:
        path: Of the file, which is written whole.
        result: Of the dataset.
        key: What the result depends on: :func:`read_result` returns it for this key alone.
    """
    keep(path, key, _plain(asdict(result)))


def read_result(path: Path, key: str) -> DatasetResult | None:
    """The result that :func:`save_result` has kept for a key; None if there is none."""
    try:
        result = DatasetResult(**kept(path, key))
    except (ValueError, TypeError):
        return None
    for metrics in (*result.scores.values(), result.classes):
        metrics.update({name: math.nan for name, value in metrics.items() if value is None})
    return result


def table(datasets: Sequence[DatasetResult]) -> list[str]:
    """The lines of a Markdown table of all scores on some datasets; columns without any value are left out."""
    found = {key for dataset in datasets for metrics in dataset.scores.values() for key in metrics}
    columns = [column for column in COLUMNS if column.key in found]
    rows = [['dataset', 'images', 'score', *(column.title for column in columns)]]
    for dataset in datasets:
        best = {column.key: _best(column, dataset.scores.values()) for column in columns}
        for name, metrics in dataset.scores.items():
            cells = [_cell(metrics.get(c.key, math.nan), c, best[c.key]) for c in columns]
            rows.append([dataset.name, str(dataset.images), name, *cells])
    return markdown_table(rows, left=(0, 2))


def _best(column: Column, scores: Iterable[Mapping[str, float]]) -> str | None:
    """How a column's best value is written; None if no value is better than others."""
    values = [metrics.get(column.key, math.nan) for metrics in scores]
    values = sorted(column.best * value for value in values if not math.isnan(value))
    if not column.best or len({_number(value, column) for value in values}) < 2:
        return None
    return _number(column.best * values[-1], column)


def _cell(value: float, column: Column, best: str | None) -> str:
    text = _number(value, column)
    return f'**{text}**' if text == best else text


def _number(value: float, column: Column) -> str:
    return '–' if math.isnan(value) else f'{value:.{column.digits}f}'


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ', '.join(f'{name} {_inline(item)}' for name, item in value.items())
    return ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for, NaN and infinity, as None."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
