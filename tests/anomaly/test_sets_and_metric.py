"""Datasets of road anomalies and their metric, in a real run of a small model."""

import math
from pathlib import Path

import pytest
from conftest import ROOT, small_options
from made_sets import MADE
from mmengine.config import Config
from mmengine.runner import Runner

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='EoMTResize', size=(32, 48)),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]


def evaluate(scenes: Path, work_dir: Path, dataset: dict, num_classes: int = 19, **metric) -> dict[str, float]:
    """Metrics of a small model that is not trained."""
    config = Config.fromfile(ROOT / 'configs' / 'eomt_tiny_cityscapes.py')
    config.merge_from_dict(small_options(scenes, work_dir, 1))
    config.model.decode_head.num_classes = num_classes
    config.test_dataloader.dataset = dict(test_mode=True, pipeline=PIPELINE, **dataset)
    config.test_evaluator = dict(type='AnomalyMetric', scores=['rba', 'max'], **metric)
    return Runner.from_cfg(config).test()


@pytest.mark.parametrize(
    ('preset', 'num_classes', 'components'),
    [('road_anomaly_21', 19, 'anomaly'), ('road_obstacle_21', 19, 'obstacle'), ('bdd_anomaly', 16, None)],
)
def test_a_published_set_of_several_sizes_is_evaluated(scenes, tmp_path, preset, num_classes, components):
    MADE[preset][0](tmp_path)
    dataset = dict(type='AnomalyDataset', preset=preset, data_root=str(tmp_path))
    metrics = evaluate(scenes, tmp_path / 'run', dataset, num_classes, components=components)
    names = ['AP', 'AUROC', 'FPR95', 'F1', *(['sIoU', 'PPV', 'mean_F1'] if components else [])]
    found = {f'{name}/{score}': metrics[f'{name}/{score}'] for name in names for score in ('rba', 'max')}
    assert all(0 <= value <= 100 for value in found.values() if not math.isnan(value))
    assert all(not math.isnan(found[f'AP/{score}']) for score in ('rba', 'max'))


def test_held_out_classes_are_evaluated(scenes, tmp_path):
    prefix = dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val')
    inner = dict(type='CityscapesDataset', data_root=str(scenes), data_prefix=prefix)
    dataset = dict(type='HeldOutClassesDataset', dataset=inner, anomaly_classes=['car', 'person'])
    metrics = evaluate(scenes, tmp_path / 'run', dataset, 17, exact=True)
    assert 0 < metrics['AP/rba'] < 100
    assert 0 <= metrics['FPR95/max'] <= 100
