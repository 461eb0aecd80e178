"""AnomalyMetric in a real evaluation, over several processes, and in constant memory."""

import gc
import json
import logging
import math
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_ARCH, environment, free_port, reference, run_tool
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_eomt.anomaly import AnomalyMetric
from mmseg_eomt.anomaly.metrics.components import PRESETS, match_components, pool_components
from mmseg_eomt.anomaly.metrics.counts import ScoreCounts, SortedScores
from mmseg_eomt.anomaly.scores import OF_CLASSES

K = 5
SIZES = [(40, 64), (48, 48), (32, 80)]


def sample(index: int, size: tuple[int, int] | None = None, anomalies: bool = True) -> SegDataSample:
    """A prediction of an image: clouds of classes, a box that no class has, and an ignored border."""
    generator = torch.Generator().manual_seed(index)
    height, width = size or SIZES[index % len(SIZES)]
    labels = torch.zeros(height, width, dtype=torch.int64)
    if anomalies and index % 3 != 2:
        labels[12:24, 10:30] = 1
    labels[:4] = 255
    clouds = torch.rand(1, K, height // 8, width // 8, generator=generator) ** 2
    scores = torch.nn.functional.interpolate(clouds, (height, width), mode='bilinear')[0]
    scores *= 1 - 0.5 * (labels == 1)
    sample = SegDataSample(metainfo=dict(img_path=f'{index}.png'))
    sample.set_data(dict(seg_logits=PixelData(data=scores), gt_sem_seg=PixelData(data=labels[None])))
    return sample


def evaluate(metric: AnomalyMetric, samples: list[SegDataSample]) -> dict[str, float]:
    evaluator = Evaluator(metric)
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(len(samples))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged."""
    messages: list[str] = []
    logger = MMLogger.get_current_instance()
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def frame(scores: torch.Tensor, labels: torch.Tensor) -> SegDataSample:
    """A sample whose score ``rba_sum`` is the given map."""
    sample = SegDataSample(metainfo=dict(img_path='frame.png'))
    sample.set_data(dict(seg_logits=PixelData(data=-scores[None]), gt_sem_seg=PixelData(data=labels[None])))
    return sample


@pytest.mark.parametrize('preset', PRESETS)
def test_an_exact_evaluation_equals_the_reference(preset):
    given = reference('anomaly.pt')
    pixel, component = given['pixel']['exact'], given['component'][preset]
    results = evaluate(AnomalyMetric(['rba_sum'], preset, exact=True), [frame(*pair) for pair in given['frames']])
    expected = {
        **{f'{name}/rba_sum': 100 * pixel[name] for name in ('AP', 'AUROC', 'FPR95')},
        'F1/rba_sum': 100 * pixel['best_f1'],
        'threshold/rba_sum': pixel['best_f1_threshold'],
        'sIoU/rba_sum': 100 * component['sIoU_gt'],
        'PPV/rba_sum': 100 * component['PPV'],
        'mean_F1/rba_sum': 100 * component['mean_F1'],
    }
    assert results == pytest.approx(expected, abs=1e-7)  # of 100


def test_counts_come_near_the_reference():
    given = reference('anomaly.pt')
    results = evaluate(AnomalyMetric(['rba_sum']), [frame(*pair) for pair in given['frames']])
    for name in ('AP', 'AUROC', 'FPR95'):
        assert results[f'{name}/rba_sum'] == pytest.approx(100 * given['pixel']['exact'][name], abs=1e-2)


def test_many_scores_and_sizes_in_one_pass_equal_each_alone():
    samples = [sample(index) for index in range(5)]
    names = list(OF_CLASSES)
    together = evaluate(AnomalyMetric(names, 'obstacle'), samples)
    assert list(together)[:8] == [
        f'{metric}/rba' for metric in ('AP', 'AUROC', 'FPR95', 'F1', 'threshold', 'sIoU', 'PPV', 'mean_F1')
    ]
    assert len(together) == 8 * len(names)
    for name in names:
        alone = evaluate(AnomalyMetric([name], 'obstacle'), samples)
        expected = {key: value for key, value in together.items() if key.endswith(f'/{name}')}
        assert alone == pytest.approx(expected, abs=0, nan_ok=True)  # of a poor score, nothing may be predicted


def test_what_is_pooled_is_every_image_also_those_without_anomalies():
    samples = [sample(index) for index in range(6)]
    metric = AnomalyMetric(['max'], 'obstacle')
    results = evaluate(metric, samples)
    counts = ScoreCounts('max')
    for one in samples:
        counts.add(OF_CLASSES['max'](one.seg_logits.data), one.gt_sem_seg.data[0])
    assert torch.equal(metric.finished['max'].counts, counts.counts)
    assert 100 * counts.metrics()['AP'] == results['AP/max']
    frames = [
        match_components(
            (OF_CLASSES['max'](one.seg_logits.data) >= results['threshold/max']).numpy(),
            one.gt_sem_seg.data[0].numpy(),
            PRESETS['obstacle'],
        )
        for one in samples
    ]
    assert 100 * pool_components(frames)['PPV'] == results['PPV/max']
    without = [one for one in samples if (one.gt_sem_seg.data == 1).any()]
    assert evaluate(AnomalyMetric(['max']), without)['AP/max'] > results['AP/max']


def test_exact_and_counted_agree():
    samples = [sample(index) for index in range(5)]
    exact, counted = (evaluate(AnomalyMetric(['rba', 'energy'], exact=exact), samples) for exact in (True, False))
    for key in exact:
        assert counted[key] == pytest.approx(exact[key], abs=0.05 if 'threshold' not in key else 1e-3), key


def test_scores_of_half_precision_and_inference_mode_are_taken():
    samples = [sample(index) for index in range(3)]
    expected = evaluate(AnomalyMetric(exact=True), samples)
    evaluator = Evaluator(AnomalyMetric(exact=True))
    with torch.inference_mode():
        for one in samples:
            one.seg_logits.data = one.seg_logits.data.half()
            evaluator.process([one])
    assert evaluator.evaluate(3) == pytest.approx(expected, abs=0.5)


def test_evaluations_in_a_row_begin_anew():
    metric = AnomalyMetric(components='obstacle')
    first = evaluate(metric, [sample(0), sample(1)])
    counts = metric.finished['rba']
    assert evaluate(metric, [sample(3)]) != first
    assert evaluate(metric, [sample(0), sample(1)]) == first
    assert counts is not metric.finished['rba']


def test_an_evaluation_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    metric = AnomalyMetric(components='obstacle')
    first = evaluate(metric, [sample(0), sample(1)])
    broken = sample(2)
    broken.gt_sem_seg.data[0, 10, 10] = 18
    evaluator = Evaluator(metric)
    evaluator.process([sample(0)])
    evaluator.process([sample(1)])
    assert metric._kept._file is not None and not list(tmp_path.iterdir())  # the file has no name
    with pytest.raises(ValueError, match=r'2\.png: Labels of anomalies are .* got 18: .* AnomalyDataset'):
        evaluator.process([broken])
    assert metric._kept._file is None
    assert evaluate(metric, [sample(0), sample(1)]) == first
    evaluator.process([sample(0)])  # interrupted by something else, as by Ctrl-C in the model
    evaluator.process([sample(1)])
    with pytest.raises(ValueError, match=r'predicted 3 images of a dataset that has 1: .* reset\(\)'):
        evaluate(metric, [sample(0)])
    assert evaluate(metric, [sample(0), sample(1)]) == first
    assert not list(tmp_path.iterdir())


def test_scores_that_are_no_numbers_are_named():
    broken = sample(0)
    broken.seg_logits.data[:, 20, 20] = torch.nan
    with pytest.raises(ValueError, match=r"^0\.png: The score 'rba' is NaN or infinite at 1 of \d+ pixels"):
        evaluate(AnomalyMetric(), [broken, sample(1)])


def test_labels_of_another_size_or_none_are_refused():
    other = sample(0)
    other.set_data(dict(gt_sem_seg=PixelData(data=torch.zeros(1, 20, 32))))
    with pytest.raises(ValueError, match=r'0\.png: .*shape \(40, 64\) and its labels \(20, 32\)'):
        evaluate(AnomalyMetric(), [other])
    del other.gt_sem_seg
    with pytest.raises(ValueError, match=r'0\.png has no labels: the test pipeline needs LoadAnnotations'):
        evaluate(AnomalyMetric(), [other])


def test_a_split_without_anomalies_is_nan_with_one_warning(said):
    samples = [sample(index, anomalies=False) for index in range(3)]
    results = evaluate(AnomalyMetric(['rba', 'max'], 'obstacle'), samples)
    assert len(results) == 16 and all(map(math.isnan, results.values()))
    printed = '\n'.join(said)
    assert printed.count('No anomalous pixel is in the whole split') == 1
    assert 'the labels may be hidden ones of a benchmark, or the label map may be wrong' in printed


def test_no_image_at_all_is_nan_too(said):
    assert all(map(math.isnan, AnomalyMetric(['rba', 'energy'], 'obstacle').evaluate(0).values()))
    assert any('No anomalous or inlier pixel is in the whole split' in message for message in said)


def test_a_table_is_logged(said):
    results = evaluate(AnomalyMetric(['rba', 'max'], 'obstacle'), [sample(0), sample(1)])
    printed = '\n'.join(said)
    line = next(line for line in printed.splitlines() if line.startswith('|   max |'))
    assert [cell.strip() for cell in line.split('|')][2] == f'{results["AP/max"]:.2f}'


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"components is one of 'anomaly', 'obstacle' or None, got 'road'"):
        AnomalyMetric(components='road')
    with pytest.raises(ValueError, match="got 'softmax'"):
        AnomalyMetric(['softmax'])
    with pytest.raises(ValueError, match='scores of AnomalyMetric is empty'):
        AnomalyMetric([])
    with pytest.raises(ValueError, match=r'needs the queries, .*EoMTAnomalySegmentor'):
        evaluate(AnomalyMetric(['eam']), [sample(0)])


def test_a_prefix_goes_before_the_names():
    assert 'val/AP/rba' in evaluate(AnomalyMetric(prefix='val'), [sample(0), sample(1)])


def live_tensors() -> dict[int, torch.Tensor]:
    gc.collect()
    return {id(found): found for found in gc.get_objects() if isinstance(found, torch.Tensor)}


def held(others: dict[int, torch.Tensor]) -> int:
    """Bytes of the tensors that are not among those of other tests, and of what Python and numpy have allocated."""
    own = [tensor for key, tensor in live_tensors().items() if key not in others]
    return tracemalloc.get_traced_memory()[0] + sum(tensor.untyped_storage().nbytes() for tensor in own)


@pytest.mark.parametrize('components', [None, 'obstacle'])
def test_memory_does_not_grow_with_the_number_of_images(components):
    others, memory = live_tensors(), {}
    evaluator = Evaluator(AnomalyMetric(['rba', 'max'], components))
    tracemalloc.start()
    try:
        for number in range(500):
            evaluator.process([sample(number, size=(40, 64))])
            if number in (50, 499):
                memory[number] = held(others)
    finally:
        tracemalloc.stop()
    assert 2 * 67_000_000 < memory[50] < 2 * 67_200_000 + 3_000_000
    assert memory[499] - memory[50] < 50_000  # 450 images have 4.6 MB of pixels
    evaluator.evaluate(500)


OPTIONS = dict(
    counted=dict(components='obstacle'),
    exact=dict(components='obstacle', exact=True),
    gathered=dict(components='obstacle', collect_device='gpu'),  # by the process group in place of files
)


def of_this_process() -> dict[str, dict[str, float]]:
    """Metrics of some images, of which this process evaluates those that the toolbox's sampler gives to it."""
    found = {}
    for number, name in ((5, 'counted'), (5, 'exact'), (5, 'gathered'), (1, 'counted'), (6, 'exact')):
        metric = AnomalyMetric(['energy'], **OPTIONS[name])
        evaluator = Evaluator(metric)
        indices = list(DefaultSampler(range(number), shuffle=False))
        for start in range(0, len(indices), 2):  # two images a batch
            evaluator.process([sample(index) for index in indices[start : start + 2]])
        found[f'{number} {name}'] = dict(evaluator.evaluate(number), later=metric.finished['energy'].tpr_threshold(0.5))
    return found


def be_one_of_two(rank: int, port: int, out: str) -> None:
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    Path(out, f'{rank}.json').write_text(json.dumps(of_this_process()))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_bit_for_bit(tmp_path):
    port, env = free_port(), environment(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}:{Path(__file__).parent}')
    code = f'from test_metric import be_one_of_two; be_one_of_two({{}}, {port}, {str(tmp_path)!r})'
    ranks = [subprocess.Popen(['python', '-c', code.format(rank)], cwd=ROOT, env=env) for rank in (0, 1)]
    one = of_this_process()
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert len(one) == 5 and all(map(math.isfinite, one['5 counted'].values()))
    for rank in (0, 1):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == one


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three images of two sizes, and a small model that predicts scores of queries too."""
    root = tmp_path_factory.mktemp('anomalies')
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(64, 96), (48, 64), (64, 96)]):
        labels = np.zeros((height, width), np.uint8)
        labels[20:40, 20:40] = index != 1
        labels[:8] = 255
        for folder, picture in (('images', rng.integers(0, 255, (height, width, 3), np.uint8)), ('labels', labels)):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f'{index}.png'), picture)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    metainfo = dict(classes=[f'class {k}' for k in range(K)], palette=[[k, k, k] for k in range(K)])
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=metainfo,
        pipeline=pipeline,
    )
    return Config(
        dict(
            custom_imports=dict(imports=['mmseg_eomt'], allow_failed_imports=False),
            default_scope='mmseg',
            work_dir=str(root / 'runs'),
            model=dict(
                type='EoMTAnomalySegmentor',
                vit=dict(arch=SMALL_ARCH, patch_size=8, num_joint_blocks=2, img_size=(32, 32)),
                data_preprocessor=dict(type='SegDataPreProcessor', pad_val=0, seg_pad_val=255),
                backbone=dict(type='EoMTViT'),
                decode_head=dict(
                    type='EoMTAnomalyHead', num_classes=K, num_queries=9, num_points=64, anomaly_scores=['eam', 'rba@0.5']
                ),
                test_cfg=dict(mode='slide_evenly'),
            ),
            test_dataloader=dict(
                batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset
            ),
            test_cfg=dict(type='TestLoop'),
            test_evaluator=dict(type='AnomalyMetric', scores=['rba', 'eam', 'rba@0.5'], components='obstacle'),
        )
    )


def test_a_runner_evaluates_scores_of_classes_and_queries(config):
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    results = runner.test()
    assert len(results) == 24 and all(map(math.isfinite, results.values()))
    assert results == runner.test()
    exact = Runner.from_cfg(Config(dict(config, test_evaluator=dict(config.test_evaluator, exact=True))))
    exact.model.load_state_dict(runner.model.state_dict())
    for name, value in exact.test().items():
        assert results[name] == pytest.approx(value, abs=0.05), name
    metric = runner.test_evaluator.metrics[0]
    assert isinstance(exact.test_evaluator.metrics[0].finished['eam'], SortedScores)
    assert metric.finished['eam'].curve(10)['recall'][-1] == 1


@pytest.mark.slow
def test_dist_test_reports_what_one_process_does(config, tmp_path):
    torch.manual_seed(0)
    torch.save(dict(state_dict=Runner.from_cfg(config).model.state_dict()), tmp_path / 'model.pth')
    file = tmp_path / 'config.py'
    config.dump(file)
    options = (file, tmp_path / 'model.pth')
    run_tool('tools/test.py', *options, '--work-dir', tmp_path / 'one')
    run_tool('tools/dist_test.sh', *options, 2, '--work-dir', tmp_path / 'two', PORT=free_port())
    one, two = (json.loads(next((tmp_path / name).glob('*/*.json')).read_text()) for name in ('one', 'two'))
    metrics = [key for key in one if '/' in key]
    assert len(metrics) == 24 and [one[key] for key in metrics] == [two[key] for key in metrics]
