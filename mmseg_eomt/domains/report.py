"""The results of an evaluation of robustness: tables, and all numbers as JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmseg_eomt.domains.corruptions import FAMILIES, KINDS
from mmseg_eomt.domains.robustness import OWN
from mmseg_eomt.tables import markdown_table
from mmseg_eomt.whole import whole_file

METRICS = ('mIoU', 'mAcc', 'aAcc')


@dataclass(frozen=True)
class Result:
    """What came out on a dataset.

    Attributes:
        name: Of the domain or kind of corruption; :data:`.OWN`.
        severity: Of a corruption; 0 for images as they are.
        images: Their number.
        metrics: mIoU, mAcc and aAcc, in per cent.
    """

    name: str
    severity: int
    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The results of one model.

    Attributes:
        title: Such as the config's name.
        settings: What was evaluated, for the reader.
        results: The own data first.
        notes: Sentences on what was not evaluated.
    """

    title: str
    settings: Mapping[str, Any]
    results: Sequence[Result]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The tables."""
        lines = [f'# Robustness: {self.title}', '', *(f'- {name}: {value}' for name, value in self.settings.items())]
        lines += ['', *self._domains(), '', 'In per cent; the last column is the mIoU in per cent of that on the own data.']
        corrupted = [result for result in self.results if result.severity]
        if corrupted:
            text = 'mIoU of the own data corrupted, by severity. The mean over all kinds is that of the means of the kinds.'
            lines += ['', *self._corruptions(corrupted), '', text]
        lines += ['', *(f'- {note}' for note in self.notes)] if self.notes else []
        return '\n'.join(lines) + '\n'

    def _domains(self) -> list[str]:
        rows = [['domain', 'images', *METRICS, 'of own']]
        domains = [result for result in self.results if not result.severity]
        for result in domains:
            rows.append([result.name, str(result.images), *self._cells(result.metrics)])
        if others := [result.metrics for result in domains if result.name != OWN]:
            mean = {key: fmean(metrics[key] for metrics in others) for key in METRICS}
            rows.append(['mean of the others', '', *self._cells(mean)])
        return markdown_table(rows)

    def _cells(self, metrics: Mapping[str, float]) -> list[str]:
        return [*(_number(metrics[key]) for key in METRICS), self._relative(metrics['mIoU'])]

    def _corruptions(self, results: Sequence[Result]) -> list[str]:
        severities = sorted({result.severity for result in results})
        values = {(result.name, result.severity): result.metrics['mIoU'] for result in results}
        names = list(dict.fromkeys(result.name for result in results))
        rows = [['corruption', *map(str, severities), 'mean', 'of own']]

        def add(title: str, kinds: Iterable[str]) -> None:
            cells = [fmean(values[name, severity] for name in kinds) for severity in severities]
            rows.append([title, *map(_number, cells), _number(fmean(cells)), self._relative(fmean(cells))])

        for family in FAMILIES:
            kinds = [name for name in names if KINDS[name].family == family]
            for name in kinds:
                add(name, [name])
            if len(kinds) > 1:
                add(f'**{family}**', kinds)
        add('**all**', names)
        return markdown_table(rows)

    def _relative(self, value: float) -> str:
        own = self.results[0].metrics['mIoU']
        return _number(100 * value / own, 1) if own else '–'

    def write(self, folder: Path) -> list[Path]:
        """Write ``results.md`` and ``results.json``, each whole; their paths."""
        numbers = dict(asdict(self), settings=dict(self.settings))
        contents = {'results.md': self.markdown(), 'results.json': json.dumps(numbers, indent=1) + '\n'}
        for name, content in contents.items():
            with whole_file(folder / name) as new:
                new.write_text(content, encoding='utf-8')
        return [folder / name for name in contents]


def _number(value: float, digits: int = 2) -> str:
    return '–' if math.isnan(value) else f'{value:.{digits}f}'
