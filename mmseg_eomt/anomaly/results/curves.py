"""A chart of the precision-recall and ROC curves of anomaly scores."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmseg_eomt.anomaly.results.report import TRUE_RATE, DatasetResult
from mmseg_eomt.whole import whole_file

NUM_NAMED = 4  # scores with a colour on each dataset
OTHERS = '0.75'
REST = 'other scores'


def draw_curves(datasets: Sequence[DatasetResult], path: str | Path) -> None:
    """Draw a row for each dataset: precision over recall, and true over false positive rates.

    The scores with the best AP have a colour, the same on all datasets; a dot is where the true positive rate reaches 95 %.

    Args:
        datasets: With curves; one without is left out.
        path: Of the PNG, which is written whole.
    """
    datasets = [dataset for dataset in datasets if dataset.best_scores(1)]
    if not datasets:
        return
    named = list(dict.fromkeys(name for dataset in datasets for name in dataset.best_scores(NUM_NAMED)))
    palette = matplotlib.colormaps['tab10' if len(named) <= 10 else 'tab20'].colors  # type: ignore[attr-defined]
    colours = {name: palette[i % len(palette)] for i, name in enumerate(named)}
    figure = Figure((12, 4.2 * len(datasets)), layout='constrained')  # without pyplot, which would open a display
    for (left, right), dataset in zip(figure.subplots(len(datasets), 2, squeeze=False), datasets):
        _draw_row(left, right, dataset, colours)
    with whole_file(path) as new:
        figure.savefig(new, dpi=110)


def _draw_row(left: Axes, right: Axes, dataset: DatasetResult, colours: dict[str, tuple[float, ...]]) -> None:
    best = dataset.best_scores(NUM_NAMED)
    others = [name for name in dataset.scores if name not in best and dataset.curves[name]['fpr']]
    for i, name in enumerate([*others, *reversed(best)]):  # the best on top
        curve, metrics = dataset.curves[name], dataset.scores[name]
        style: dict = dict(color=colours[name], linewidth=1.8) if name in best else dict(color=OTHERS, linewidth=0.9)
        zorder = 2 + 0.01 * i
        texts = [f'{name}: {key} {metrics[key]:.1f}' for key in ('AP', 'FPR95')]
        ap, fpr95 = texts if name in best else (REST if name == others[0] else None,) * 2
        left.step(curve['recall'], curve['precision'], where='pre', zorder=zorder, label=ap, **style)
        right.plot(curve['fpr'], curve['recall'], zorder=zorder, label=fpr95, **style)
        point = dataset.points.get(name, {}).get(f'tpr={TRUE_RATE}')
        if name in best and point:
            for axis, x, y in ((left, 'recall', 'precision'), (right, 'fpr', 'recall')):
                axis.plot(point[x], point[y], 'o', color=style['color'], markeredgecolor='white', zorder=3 + zorder)
    right.axhline(TRUE_RATE, color='0.5', linewidth=0.8, linestyle=':', zorder=1)
    right.text(1.015, TRUE_RATE, '95 %', va='center', fontsize=8, color='0.4')
    title = f'{dataset.name} ({dataset.images} image{"s" if dataset.images != 1 else ""})'
    _finish(left, f'{title}: precision and recall', 'recall', 'precision', best)
    _finish(right, f'{title}: ROC', 'false positive rate', 'true positive rate', best)


def _finish(axis: Axes, title: str, x: str, y: str, named: list[str]) -> None:
    """Titles, limits and a legend: the best scores in their order, then the others."""
    axis.set(title=title, xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axis.grid(color='0.92')
    axis.set_axisbelow(True)
    handles, labels = axis.get_legend_handles_labels()
    order = [i for name in named for i, label in enumerate(labels) if label.rpartition(': ')[0] == name]
    order += [i for i, label in enumerate(labels) if label == REST]
    axis.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8, loc='best')
