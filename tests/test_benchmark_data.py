"""The benchmark of the data path runs, on small files."""

import importlib.util
import json
import sys

import pytest
from conftest import ROOT


def test_the_benchmark_measures_each_part_of_both_pipelines(scenes, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('benchmarks_data', ROOT / 'benchmarks' / 'data.py')
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    small = {name: (config, (64, 32), *rest) for name, (config, _, *rest) in benchmark.SETTINGS.items()}
    monkeypatch.setattr(benchmark, 'SETTINGS', small)
    monkeypatch.setattr(benchmark, 'RESULTS', tmp_path / 'data.json')
    monkeypatch.setattr(sys, 'argv', ['data.py', '--root', str(scenes), '--rounds', '1'])
    benchmark.main()
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / 'data.json').read_text())
    for figures in results['settings'].values():
        assert {'before', 'now'} <= set(figures['milliseconds'])
        assert figures['mean_difference'] < 0.5
    assert all(f'| {name}' in printed for name in small)

    monkeypatch.setattr(sys, 'argv', ['data.py', '--root', str(tmp_path)])
    with pytest.raises(SystemExit, match=r"0 training images in Cityscapes' layout, and it takes 4: give --root"):
        benchmark.main()
