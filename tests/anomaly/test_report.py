"""The table, the JSON and the chart of an evaluation of anomalies."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from mmseg_eomt.anomaly.metrics.counts import ScoreCounts
from mmseg_eomt.anomaly.results.curves import draw_curves
from mmseg_eomt.anomaly.results.report import DatasetResult, Report, read_result, save_result


def result(name: str, gaps: dict[str, float], components: bool = False) -> DatasetResult:
    """Results of scores whose anomalous pixels lie higher by a gap, in units of their noise."""
    made = DatasetResult(name, f'data/{name}', 3)
    metrics, finished = {}, {}
    labels = (torch.rand(20000) < 0.05).long()
    for score, gap in gaps.items():
        finished[score] = ScoreCounts(score)
        finished[score].add(torch.randn(20000) + gap * labels, labels)
        values = finished[score].metrics()
        threshold = values.pop('threshold')
        metrics |= {f'{key}/{score}': 100 * value for key, value in values.items()} | {f'threshold/{score}': threshold}
        if components:
            metrics |= {f'sIoU/{score}': 50.0, f'PPV/{score}': 40.0, f'mean_F1/{score}': math.nan}
    made.add_scores(metrics, finished)
    return made


@pytest.fixture
def report() -> Report:
    datasets = [result('road_anomaly_21', dict(rba=3, max=2, eam=2.5), True), result('fishyscapes_laf', dict(rba=1, max=2))]
    datasets.append(DatasetResult('classes', 'CityscapesDataset', 500, classes=dict(mIoU=83.412)))
    return Report('a config', dict(checkpoint='a.pth', versions=dict(torch='2.6')), datasets, ['street_hazards: not there.'])


def rows(report: Report) -> list[list[str]]:
    lines = [line for line in report.markdown().splitlines() if line.startswith('|')]
    assert len(set(map(len, lines))) == 1  # aligned
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_the_table_has_a_row_for_each_dataset_and_score_and_the_best_is_bold(report):
    head, _, *body = rows(report)
    assert head[:6] == ['dataset', 'images', 'score', 'AP ↑', 'AUROC ↑', 'FPR95 ↓']
    assert [row[:3] for row in body] == [
        ['road_anomaly_21', '3', 'rba'],
        ['road_anomaly_21', '3', 'max'],
        ['road_anomaly_21', '3', 'eam'],
        ['fishyscapes_laf', '3', 'rba'],
        ['fishyscapes_laf', '3', 'max'],
    ]
    assert [row[2] for row in body if row[3].startswith('**')] == ['rba', 'max']
    assert [row[2] for row in body if row[5].startswith('**')] == ['rba', 'max']
    assert float(body[1][3]) == round(report.datasets[0].scores['max']['AP'], 2)


def test_metrics_that_a_dataset_does_not_define_are_a_dash(report):
    head, _, *body = rows(report)
    siou, mean = head.index('sIoU ↑'), head.index('mean F1 ↑')
    assert [row[siou] for row in body] == ['50.00'] * 3 + ['–'] * 2  # none is better than the others
    assert {row[mean] for row in body} == {'–'}
    report.datasets.pop(0)
    assert 'sIoU ↑' not in rows(report)[0]


def test_the_miou_and_what_was_not_evaluated_stand_below_the_table(report):
    text = report.markdown()
    assert '**mIoU 83.41 %** on 500 images of CityscapesDataset' in text
    assert text.endswith('- street_hazards: not there.\n')
    assert '- versions: torch 2.6' in text


def test_the_json_has_all_numbers_and_none_for_those_not_defined(report, tmp_path):
    files = report.write(tmp_path)
    assert sorted(file.name for file in files) == ['results.json', 'results.md']
    content = json.loads((tmp_path / 'results.json').read_text())
    first = content['datasets'][0]
    assert first['scores']['rba']['AP'] == report.datasets[0].scores['rba']['AP']
    assert first['scores']['rba']['mean_F1'] is None
    assert 'curves' not in first and content['settings']['checkpoint'] == 'a.pth'
    point = first['points']['rba']['tpr=0.95']
    assert point['recall'] >= 0.95
    assert 100 * point['fpr'] == pytest.approx(first['scores']['rba']['FPR95'])


def test_a_kept_result_is_read_for_its_own_key_alone(report, tmp_path):
    kept, path = report.datasets[0], tmp_path / 'datasets' / 'road_anomaly_21.json'
    save_result(path, kept, 'key')
    assert read_result(path, 'other') is None
    assert read_result(tmp_path / 'none.json', 'key') is None
    found = read_result(path, 'key')
    assert found is not None and math.isnan(found.scores['rba']['mean_F1'])
    report.datasets[0], before = found, rows(report)
    assert rows(report) == before and found.curves == kept.curves
    save_result(path, DatasetResult('classes', 'data', 1, classes=dict(mIoU=math.nan)), 'key')
    assert math.isnan(read_result(path, 'key').classes['mIoU'])
    path.write_text(path.read_text()[:20])
    assert read_result(path, 'key') is None


def test_a_split_without_an_anomaly_has_dashes_and_no_curve(tmp_path):
    made, counts = DatasetResult('clean', 'data', 1), ScoreCounts('rba')
    counts.add(torch.zeros(10), torch.zeros(10, dtype=torch.long))
    made.add_scores({f'{key}/rba': math.nan for key in ('AP', 'AUROC', 'FPR95', 'F1', 'threshold')}, dict(rba=counts))
    assert made.best_scores(3) == [] and made.points == {}
    assert rows(Report('x', {}, [made]))[2][3:] == ['–'] * 5
    draw_curves([made], tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()


def test_the_chart_has_a_row_for_each_dataset_with_curves(report, tmp_path):
    draw_curves(report.datasets, tmp_path / 'two.png')
    draw_curves(report.datasets[:1], tmp_path / 'one.png')
    two, one = (np.array(Image.open(tmp_path / name)) for name in ('two.png', 'one.png'))
    assert two.shape[1] == one.shape[1] and two.shape[0] == 2 * one.shape[0]
    assert (one[..., :3].max(2) - one[..., :3].min(2) > 60).sum() > 500  # coloured


def test_the_curve_and_the_metrics_are_of_the_same_pixels(report):
    curve = report.datasets[0].curves['rba']
    recall, fpr = np.array(curve['recall']), np.array(curve['fpr'])
    area = (np.diff(fpr) * (recall[1:] + recall[:-1]) / 2).sum()
    assert 100 * area == pytest.approx(report.datasets[0].scores['rba']['AUROC'], abs=0.2)
