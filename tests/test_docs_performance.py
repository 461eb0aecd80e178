"""The tables of docs/performance.md are the figures that the benchmark wrote, and each of its sections runs."""

import copy
import importlib.util
import json

import pytest
import torch
from conftest import ROOT, SMALL_ARCH, run_tool

from benchmarks import candidates, sections
from benchmarks.meter import Meter
from benchmarks.report import fill_page, tables
from benchmarks.sections.against import LIGHTLY, other_and_ours
from benchmarks.sections.gpu import KINDS, gpu, large_lora, measured
from benchmarks.sections.growth import growth
from benchmarks.sections.prediction import predicted_mb

RESULTS = json.loads((ROOT / 'benchmarks' / 'results' / 'speed_cpu.json').read_text())
PAGE = (ROOT / 'docs' / 'performance.md').read_text(encoding='utf-8')
TINY = {**SMALL_ARCH, 'num_layers': 5}  # four blocks are joint ones
ONCE = Meter('cpu', 1)


@pytest.mark.parametrize('section', tables(RESULTS))
def test_the_page_shows_what_was_measured(section):
    lines = tables(RESULTS)[section]
    assert len(lines) > 3
    assert '\n'.join([f'<!-- speed_cpu {section} -->', *lines, '']) in PAGE


def test_the_page_names_what_it_was_measured_with():
    assert RESULTS['device'].split(',')[0] in PAGE
    assert RESULTS['versions']['torch'].split('+')[0] in PAGE
    assert RESULTS['versions']['transformers'] in PAGE


def test_new_figures_take_the_place_of_old_ones_in_a_page(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('Before\n\n<!-- speed_cuda gpu -->\n\nBetween\n\n<!-- speed_cuda tricks -->\n| old |\n|---|\n\nAfter\n')
    for figure in ('| a |', '| b |'):
        fill_page(page, 'speed_cuda', dict(gpu=[figure], tricks=[figure, figure]))
    marks = ('<!-- speed_cuda gpu -->', '<!-- speed_cuda tricks -->')
    assert page.read_text() == f'Before\n\n{marks[0]}\n| b |\n\nBetween\n\n{marks[1]}\n| b |\n| b |\n\nAfter\n'
    with pytest.raises(ValueError, match='put the line <!-- speed_cpu gpu --> where it belongs'):
        fill_page(page, 'speed_cpu', dict(gpu=['| c |']))


def test_the_gpu_section_is_whole_on_any_device(monkeypatch):
    monkeypatch.setattr(candidates, 'POINTS', 64)
    monkeypatch.setattr(candidates, 'QUERIES', 20)
    monkeypatch.setattr(sections.gpu, 'compiled', copy.deepcopy)  # compiling takes a minute, and has tests elsewhere
    monkeypatch.setattr(sections.gpu, 'predicted_mb', lambda *_: 1)
    rows = gpu(ONCE, TINY, 'cpu', side=64, batch=1)
    assert [row['title'] for row in rows] == [f'ViT tiny, {name}: {kind}' for name in ('fp32', 'bf16') for kind in KINDS]
    assert all(row['ours'] and row['hugging_face'] and row['speed'] for row in rows)
    assert [bool(row.get('compiled')) for row in rows] == ['checkpointing' not in kind for kind in KINDS] * 2
    rates = large_lora(ONCE, TINY, 'cpu', side=64, batch=1, product=64)
    written = tables(dict(gpu=rows, large_lora=rates))
    assert len(written['gpu']) == 2 + len(rows)
    assert len(written['large_lora']) == 4


def test_the_planner_predicts_the_benchmarks_step_in_bf16():
    assert predicted_mb(TINY, 64, 1, 'cuda', True, 'step, LoRA') > 0
    assert predicted_mb(TINY, 64, 1, 'cuda', True, 'inference') is None


def test_what_does_not_fit_a_gpu_leaves_the_others_measured():
    def too_large() -> None:
        raise torch.OutOfMemoryError

    taken = measured(ONCE, dict(ours=lambda: None, compiled=lambda: None, hugging_face=too_large))
    assert taken['ours']
    assert taken['hugging_face'] is None


def test_growth_tells_attention_from_all_else(monkeypatch):
    monkeypatch.setattr(candidates, 'POINTS', 64)
    sizes = dict(inference=(64, 128), step=(64, 128))
    rows = growth(ONCE, TINY, 'cpu', dict(tokens=sizes))
    assert [row['title'] for row in rows] == [f'{kind}, {n} tokens' for kind in sizes for n in (16, 64)]
    assert all(0 < row['attention'] < row['seconds'] for row in rows)
    assert ['power' in row for row in rows] == [False, True] * 2


def test_other_implementations_are_skipped_with_a_word_where_they_are_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
    assert other_and_ours(LIGHTLY, 'small', 64) is None
    assert other_and_ours(str(tmp_path), 'small', 64) is None
    said = capsys.readouterr().out
    assert 'LightlyTrain is not installed and is skipped' in said
    assert f'{tmp_path} has no models/eomt.py' in said


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    options = ('--rounds', 1, '--sides', 64, '--batches', 1, '--device', 'cpu', '--out', tmp_path)
    run_tool('benchmarks/speed.py', *options, '--only', 'inference', 'training')
    written = json.loads((tmp_path / 'speed_cpu.json').read_text())
    assert written['inference'][0]['error'] < 1e-4
    assert written['training'][0]['ours']['seconds'] > 0
    assert (tmp_path / 'speed_cpu.png').stat().st_size > 1000
