"""Thresholds that are calibrated at a rate, kept with the checkpoint, and refused for another one."""

import functools
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_tool
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.apis import inference_model

from mmseg_eomt.anomaly.metrics.counts import ScoreCounts, SortedScores
from mmseg_eomt.anomaly.results.thresholds import Calibration, MissingThreshold, ThresholdRule, calibration_file
from mmseg_eomt.anomaly.scores import OF_CLASSES
from mmseg_eomt.commands import predict
from mmseg_eomt.inference import load_model
from mmseg_eomt.weights.sources import checkpoint_digest

rule = ThresholdRule.parse


def pixels(anomalies: bool = True, number: int = 20_000) -> SortedScores:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(number, generator=generator) < 0.2 * anomalies).long()
    counts = SortedScores()
    counts.add(torch.randn(number, generator=generator) + 2 * labels, labels)
    return counts


@pytest.fixture
def tool(in_process):
    return functools.partial(in_process, predict.main)


@pytest.fixture(scope='module')
def config(base) -> Path:
    return next(Path(base).parent.glob('*.py'))


@pytest.fixture
def checkpoint(base, tmp_path) -> Path:
    """One in a folder of its own, since its thresholds are written beside it."""
    return Path(shutil.copy(base, tmp_path / 'iter_2000.pth'))


@pytest.fixture(scope='module')
def images(scenes) -> Path:
    return scenes / 'leftImg8bit' / 'val'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('fpr=0.01', ('fpr', 0.01, None)),
        ('tpr=.95@fishyscapes_laf', ('tpr', 0.95, 'fishyscapes_laf')),
        ('best-f1', ('best-f1', None, None)),
        ('best-f1@road anomaly', ('best-f1', None, 'road anomaly')),
        ('fpr=1e-4', ('fpr', 1e-4, None)),
        ('-0.3', ('value', -0.3, None)),
    ],
)
def test_a_rule_is_a_rate_the_best_f1_or_a_value(text, expected):
    found = rule(text)
    assert (found.kind, None if found.kind == 'best-f1' else found.number, found.dataset) == expected
    assert rule(str(found)) == found or found.kind == 'best-f1'


@pytest.mark.parametrize('text', ['', 'fpr', 'fpr=', 'fpr=0', 'fpr=-1', 'tpr=1.01', 'f1', 'nan', 'inf', 'fpr=1x', 'fpr=--1'])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match=r'A threshold is fpr=0.01 \(share of clean pixels\), .*; got '):
        rule(text)


def test_thresholds_hold_the_rates_that_were_asked_for(tmp_path):
    calibration, counts = Calibration('a.pth', 'x'), pixels()
    calibration.add('rba', pixels(anomalies=False), 'val', 4)
    calibration.add('rba', counts, 'laf', 4)
    calibration.save(tmp_path / 'file.json')
    read = Calibration.read(tmp_path / 'file.json', 'x')
    assert read.scores == calibration.scores

    inliers, outliers = (np.concatenate(parts) for parts in counts.values)
    (clean,) = (np.concatenate(parts) for parts in pixels(anomalies=False).values[:1])
    for rate in (0.0005, 0.001, 0.0123, 0.05, 0.4567, 1):
        assert rate * 0.9 - 1 / clean.size <= (clean >= read.threshold('rba', rule(f'fpr={rate}'))).mean() <= rate
        assert (inliers >= read.threshold('rba', rule(f'fpr={rate}@laf'))).mean() <= rate
    for rate in (0.004, 0.5, 0.943, 0.95, 0.9991, 1):
        found = (outliers >= read.threshold('rba', rule(f'tpr={rate}'))).mean()
        assert rate <= found <= rate + 0.011
    assert read.threshold('rba', rule('best-f1')) == counts.ranking().metrics()['threshold']
    assert read.threshold('eam', rule('-0.25')) == -0.25


def test_counts_in_bins_and_sorted_scores_give_the_same_thresholds():
    both = []
    for kind in (ScoreCounts, SortedScores):
        counts = kind('rba', -0.76)
        generator = torch.Generator().manual_seed(0)
        counts.add(-torch.rand(5000, generator=generator), torch.zeros(5000, dtype=torch.long))
        calibration = Calibration('a.pth', 'x')
        calibration.add('rba', counts, 'val', 1)
        both.append([calibration.threshold('rba', rule(f'fpr={rate}')) for rate in (0.001, 0.01, 0.1)])
    assert both[0] == pytest.approx(both[1], abs=1e-4)


def test_what_is_not_calibrated_is_named():
    calibration = Calibration('a.pth', 'x')
    with pytest.raises(MissingThreshold, match=r'rba of a.pth is not calibrated for fpr=0.01'):
        calibration.threshold('rba', rule('fpr=0.01'))
    calibration.add('rba', pixels(), 'laf', 4)
    with pytest.raises(MissingThreshold, match=r'not calibrated for fpr=0.01 on one dataset; there is fpr@laf'):
        calibration.threshold('rba', rule('fpr=0.01'))
    calibration.add('rba', pixels(), 'static', 4)
    calibration.add('rba', pixels(False), 'val', 4)
    with pytest.raises(MissingThreshold, match='best-f1 on one dataset; there is best-f1@laf, best-f1@static'):
        calibration.threshold('rba', rule('best-f1'))
    with pytest.raises(MissingThreshold, match=r'not calibrated for tpr=0.95@val; there is tpr@laf'):
        calibration.threshold('rba', rule('tpr=0.95@val'))
    with pytest.raises(ValueError, match='fpr=1e-05 is less than one of the 20,000 pixels of val'):
        calibration.threshold('rba', rule('fpr=1e-5'))
    empty = ScoreCounts()
    empty.add(torch.zeros(3), torch.full((3,), 255))
    with pytest.raises(ValueError, match='val has no pixel of a known class'):
        calibration.add('rba', empty, 'val', 1)


def test_a_file_of_another_checkpoint_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'a.anomaly.json'
    Calibration('a.pth', 'x').save(path)
    with pytest.raises(ValueError, match=r'is of another checkpoint, a.pth with SHA-256 x…; this one has y…'):
        Calibration.read(path, 'y')
    assert Calibration.update(path, 'b.pth', 'y').checkpoint == 'b.pth'
    for text in (
        '',
        '[]',
        '{"scores": 1}',
        '{"checkpoint": {"name": "a", "sha256": "x"}, "scores": {"rba": 1}, "format": 1}',
    ):
        path.write_text(text)
        for read in (Calibration.read, lambda path, digest: Calibration.update(path, 'a.pth', digest)):
            with pytest.raises(ValueError, match='holds no thresholds of anomaly scores'):
                read(path, 'x')
    path.write_text(json.dumps(dict(format=9, checkpoint=dict(name='a', sha256='x'), scores={})))
    with pytest.raises(ValueError, match='is of format 9'):
        Calibration.read(path, 'x')


def test_thresholds_lie_beside_a_local_checkpoint_and_elsewhere_in_the_results(tmp_path):
    (tmp_path / 'iter_2000.pth').touch()
    (tmp_path / 'v1.0').mkdir()
    assert calibration_file(str(tmp_path / 'iter_2000.pth'), 'out') == tmp_path / 'iter_2000.anomaly.json'
    assert calibration_file(str(tmp_path / 'v1.0'), 'out') == tmp_path / 'v1.0.anomaly.json'
    for name, file in (('hf://tue-mps/x@main', 'tue-mps_x_main'), ('https://host/a/b.pth?x=1', 'host_a_b.pth_x_1')):
        assert calibration_file(name, 'out') == Path('out') / f'{file}.anomaly.json'


def test_the_digest_is_that_of_the_files_that_are_read(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'abc')
    assert checkpoint_digest(str(tmp_path / 'a.pth')).startswith('ba7816bf8f01cfea')
    assert checkpoint_digest(f'file://{tmp_path}/a.pth').startswith('ba7816bf8f01cfea')
    folder = tmp_path / 'adapter'
    folder.mkdir()
    for name, content in (('adapter_config.json', '{}'), ('adapter_model.safetensors', 'weights')):
        (folder / name).write_text(content)
    first = checkpoint_digest(str(folder))
    (folder / 'adapter_model.safetensors').write_text('others')
    assert checkpoint_digest(str(folder)) != first
    with pytest.raises(FileNotFoundError, match=r'none.pth is not there'):
        checkpoint_digest(str(tmp_path / 'none.pth'))


def clean_scores(config: Path, checkpoint: Path) -> np.ndarray:
    """RbA of all pixels of a known class in the validation images."""
    model = load_model(str(config), str(checkpoint))
    init_default_scope('mmseg')
    dataset = Runner.build_dataloader(Config.fromfile(config).val_dataloader).dataset
    found = []
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        scores = OF_CLASSES['rba'](inference_model(model, sample.img_path).seg_logits.data)
        found.append(scores[sample.gt_sem_seg.data[0] < 19].numpy())
    return np.concatenate(found)


def test_a_threshold_is_calibrated_on_the_validation_images_and_used(config, checkpoint, images, tmp_path, tool):
    out = ['--out', tmp_path / 'out']
    image = next(images.rglob('*.png'))
    log = tool(config, checkpoint, image, '--anomaly', 'rba', '--threshold', 'fpr=0.05', *out, check=False)
    command = rf'Run python tools/predict.py {config} {checkpoint} --anomaly rba --calibrate \(--calibrate-images FOLDER'
    assert re.search(rf'iter_2000.anomaly.json is not there, .* {command}', log)

    printed = run_tool('tools/predict.py', config, checkpoint, '--anomaly', 'rba', '--calibrate').stdout
    file = tmp_path / 'iter_2000.anomaly.json'
    assert 'Calibrating' in printed and f'to {file}' in printed
    entry = json.loads(file.read_text())['scores']['rba']['clean']
    expected = clean_scores(config, checkpoint)
    assert entry['inliers'] == expected.size and entry['images'] == 4 and entry['anomalies'] == 0
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'The threshold .* prepared otherwise')
        tool(config, checkpoint, images, '--anomaly', 'rba', '--threshold', 'fpr=0.05', '--min-area', 1, *out)
    threshold = json.loads((tmp_path / 'out/anomaly/scores.json').read_text())['threshold']
    assert 0.045 <= (expected >= threshold).mean() <= 0.05 + 1e-3  # predicted in batches: other rounding
    masks = list((tmp_path / 'out/anomaly/masks').rglob('*.png'))
    assert len(masks) == 4

    windows = ['--cfg-options', 'model.test_cfg.mode=whole', 'model.test_cfg.stride=None']
    with pytest.warns(UserWarning, match=r'fpr=0.05 in .* prepared otherwise .* --anomaly rba --calibrate'):
        tool(config, checkpoint, image, '--anomaly', 'rba', '--threshold', 'fpr=0.05', *out, *windows)

    log = tool(config, checkpoint, image, '--anomaly', 'max', '--threshold', 'fpr=0.05', *out, check=False)
    assert 'The score max of' in log and 'is not calibrated for fpr=0.05' in log and '--anomaly max --calibrate' in log
    log = tool(config, checkpoint, image, '--anomaly', 'rba', '--threshold', 'tpr=0.95', *out, check=False)
    assert f'Run python tools/test_anomaly.py {config} {checkpoint} --data-root DATA, name another file' in log
    with checkpoint.open('ab') as other:
        other.write(b'x')
    log = tool(config, checkpoint, image, '--anomaly', 'rba', '--threshold', 'fpr=0.05', *out, check=False)
    assert 'iter_2000.anomaly.json is of another checkpoint' in log and 'calibrate again' in log


def test_labelled_anomalies_are_no_clean_images(config, checkpoint, scenes, tmp_path, tool):
    held_out = Config.fromfile(config)
    dataset = held_out.val_dataloader.dataset
    held_out.val_dataloader.dataset = dict(type='HeldOutClassesDataset', dataset=dataset, anomaly_classes=['car'])
    held_out.dump(tmp_path / 'held_out.py')
    log = tool(tmp_path / 'held_out.py', checkpoint, '--anomaly', 'rba', '--calibrate', check=False)
    assert 'HeldOutClassesDataset' in log and 'labels anomalies, and thresholds are calibrated without them' in log


def test_images_of_ones_own_calibrate_and_are_predicted_in_one_command(config, checkpoint, images, tmp_path, tool):
    folder = tmp_path / 'clean'
    shutil.copytree(images, folder)
    (folder / 'broken.png').write_bytes(b'x')
    file = tmp_path / 'mine.json'
    log = tool(
        config, checkpoint, folder, '--anomaly', 'eam', '--calibrate-images', folder, '--calibration', file,
        '--threshold', 'fpr=0.1', '--score-format', 'npy', '--min-area', 1, '--out', tmp_path / 'out', check=False,
    )  # fmt: skip
    assert f'Wrote the thresholds of eam on 4 images of {folder} to {file}' in log
    maps = [np.load(path) for path in (tmp_path / 'out/anomaly/scores').rglob('*.npy')]
    entry = json.loads(file.read_text())['scores']['eam']['clean']
    assert entry['inliers'] == sum(scores.size for scores in maps)
    threshold = json.loads((tmp_path / 'out/anomaly/scores.json').read_text())['threshold']
    assert 0.09 <= np.mean(np.concatenate([scores.ravel() for scores in maps]) >= threshold) <= 0.1
    assert not (tmp_path / 'iter_2000.anomaly.json').exists()
