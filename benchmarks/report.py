"""Results of benchmarks/speed.py: lines while it runs, tables for the page, and the chart."""

import itertools
import re
from pathlib import Path

from mmseg_eomt.tables import markdown_table
from mmseg_eomt.whole import whole_file

OTHER = dict(  # where it is not transformers
    assembly='as written', tricks='without the trick', options='without', against='other'
)
NOTHING = '–'


def row(title: str, **figures: object) -> dict:
    """Print and return a result: of two candidates, the speed-up of the first, and its memory over that of the second."""
    candidates = {name: figure for name, figure in figures.items() if isinstance(figure, dict)}
    first, second = candidates.values()
    figures['speed'] = round(second['seconds'] / first['seconds'], 2)
    figures['memory'] = round(first['peak_mb'] / second['peak_mb'], 2) if first['peak_mb'] and second['peak_mb'] else None
    line(title, candidates, f'{figures["speed"]}× speed-up, {figures["memory"]}× the memory')
    return dict(title=title, **figures)


def line(title: str, candidates: dict[str, dict], tail: str) -> None:
    """Print candidates' times and peaks, and what follows from them."""
    measured = [f'{name} {figure["seconds"]:.3f} s {figure["peak_mb"]} MB'.strip() for name, figure in candidates.items()]
    print(f'{title:<46}', *measured, tail, sep='   ', flush=True)


def tables(results: dict) -> dict[str, list[str]]:
    """Each measured section's table, as lines of Markdown."""
    makers = dict(growth=_growth, gpu=_gpu, large_lora=_large_lora)
    rows = {
        section: [row for row in found if 'title' in row] for section, found in results.items() if isinstance(found, list)
    }
    return {
        section: makers[section](found) if section in makers else _compared(found, OTHER.get(section, 'transformers'))
        for section, found in rows.items()
        if found
    }


def _cell(figure: dict | None) -> str:
    if not figure:
        return 'does not fit'
    return f'{figure["seconds"]:.2f} s, {megabytes(figure["peak_mb"])}'


def megabytes(peak: float | None) -> str:
    return NOTHING if peak is None else f'{peak:,} MB'


def _times(factor: float | None) -> str:
    return NOTHING if factor is None else f'{factor}×'


def _compared(rows: list[dict], other: str) -> list[str]:
    cells = [['', 'ours', other, 'speed-up', 'memory']]
    for result in rows:
        first, second = (value for value in result.values() if isinstance(value, dict))
        title = result['title'].removeprefix('small ').removeprefix('512 batch 2: ')
        cells.append([title, _cell(first), _cell(second), _times(result['speed']), _times(result['memory'])])
    return markdown_table(cells)


def _growth(rows: list[dict]) -> list[str]:
    cells = [['', 'time', 'attention', 'outside', 'grows with the power', 'memory']]
    for result in rows:
        parts = [f'{result[part]:.3f} s' for part in ('seconds', 'attention', 'outside')]
        power = f'{result["power"]:.2f}' if 'power' in result else NOTHING
        cells.append([result['title'], *parts, power, megabytes(result['peak_mb'])])
    return markdown_table(cells)


def _gpu(rows: list[dict]) -> list[str]:
    cells = [['', 'ours', 'compiled', 'transformers', 'speed-up', 'compiled', 'memory', 'peak', 'predicted']]
    for result in rows:
        ours, predicted = result['ours'], result.get('predicted_mb')
        peak = megabytes(ours['peak_mb'] + result['weights_mb']) if ours and ours['peak_mb'] else NOTHING
        factors = [_times(result[name]) for name in ('speed', 'compiled_speed', 'memory')]
        measured = [_cell(result[name]) if name in result else NOTHING for name in ('ours', 'compiled', 'hugging_face')]
        cells.append([result['title'], *measured, *factors, peak, megabytes(predicted)])
    return markdown_table(cells)


def _large_lora(rows: list[dict]) -> list[str]:
    cells = [['', 'time', 'memory', 'tokens per second', 'fraction of the matrix rate']]
    for result in rows:
        rate = f'{result["share_of_matrix_rate"]:.0%}'
        figures = [f'{result["total_gb"]} GB', f'{result["tokens_per_second"]:,}', rate]
        cells.append([result['title'], f'{result["ours"]["seconds"]:.2f} s', *figures])
    return markdown_table(cells)


def fill_page(page: Path, name: str, found: dict[str, list[str]]) -> None:
    """Put tables where a page has ``<!-- NAME SECTION -->``, in place of the table that follows it, if one does.

    Raises:
        ValueError: If the page has no place for a table.
    """
    text = page.read_text(encoding='utf-8')
    for section, lines in found.items():
        mark = f'<!-- {name} {section} -->'
        if mark not in text:
            raise ValueError(f'{page} has no place for the table of {section}: put the line {mark} where it belongs.')
        table = '\n'.join(lines) + '\n'
        text = re.sub(rf'{re.escape(mark)}\n(\|.*\n)*', lambda _, new=f'{mark}\n{table}': new, text)
    with whole_file(page) as part:
        Path(part).write_text(text, encoding='utf-8')


def chart(results: dict, file: Path) -> None:
    """Time and memory over the image's area, at a batch of 1."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    kinds = [kind for kind in ('inference', 'training') if results.get(kind)]
    if not kinds:
        return
    figure, axes = pyplot.subplots(len(kinds), 2, figsize=(10, 4 * len(kinds)), squeeze=False)
    for axes_of_kind, kind in zip(axes, kinds):
        for axis, field, unit in zip(axes_of_kind, ('seconds', 'peak_mb'), ('s', 'MB')):
            for arch, name in itertools.product(sorted({r['arch'] for r in results[kind]}), ('hugging_face', 'ours')):
                rows = [r for r in results[kind] if r['batch'] == 1 and r['arch'] == arch]
                label = f'ViT {arch}, {"mmseg-eomt" if name == "ours" else "transformers"}'
                axis.plot([r['side'] ** 2 / 1e6 for r in rows], [r[name][field] for r in rows], marker='o', label=label)
            axis.set(
                xlabel='megapixels', ylabel=unit, ylim=(0, None), title=f'{kind}: {"time" if unit == "s" else "memory"}'
            )
            axis.legend()
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
