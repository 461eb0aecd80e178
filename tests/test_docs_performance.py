"""The tables of docs/performance.md are the figures that the benchmark wrote."""

import json

import pytest
from conftest import ROOT, run_tool

RESULTS = json.loads((ROOT / 'benchmarks' / 'results' / 'speed_cpu.json').read_text())
PAGE = (ROOT / 'docs' / 'performance.md').read_text(encoding='utf-8')


OTHER = {'assembly': 'as written', 'tricks': 'without the trick'}  # what a section compares with, if not transformers


def table(section: str) -> list[str]:
    """A section's table: two lines of heading, then its rows."""
    lines = [f'| | ours | {OTHER.get(section, "transformers")} | speed-up | memory |', '|---|---|---|---|---|']
    for result in RESULTS[section]:
        if 'title' not in result:
            continue
        (_, ours), (_, other) = [(name, value) for name, value in result.items() if isinstance(value, dict)]
        cells = [f'{figure["seconds"]:.2f} s, {figure["peak_mb"]:,} MB' for figure in (ours, other)]
        title = result['title'].removeprefix('small ').removeprefix('512 batch 2: ')
        lines.append(f'| {title} | {cells[0]} | {cells[1]} | {result["speed"]}× | {result["memory"]}× |')
    return lines


@pytest.mark.parametrize('section', ['headline', 'inference', 'training', 'assembly', 'tricks'])
def test_the_page_shows_what_was_measured(section):
    rows = table(section)
    assert len(rows) > 3
    missing = [row for row in rows if row not in PAGE]
    assert not missing


def test_the_page_names_what_it_was_measured_with():
    assert RESULTS['device'].split(',')[0] in PAGE
    assert RESULTS['versions']['torch'].split('+')[0] in PAGE
    assert RESULTS['versions']['transformers'] in PAGE


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    options = ('--rounds', 1, '--sides', 64, '--batches', 1, '--device', 'cpu', '--out', tmp_path)
    run_tool('benchmarks/speed.py', *options, '--only', 'inference', 'training')
    written = json.loads((tmp_path / 'speed_cpu.json').read_text())
    assert written['inference'][0]['error'] < 1e-4
    assert written['training'][0]['ours']['seconds'] > 0
    assert (tmp_path / 'speed_cpu.png').stat().st_size > 1000
