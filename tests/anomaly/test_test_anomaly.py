"""tools/test_anomaly.py: from a checkpoint and folders to one table."""

import functools
import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import free_port, make_config, run_tool
from made_sets import course, lost_and_found, road_anomaly_21, street_hazards
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmseg_eomt.anomaly.results.settings import settings_digest
from mmseg_eomt.anomaly.results.thresholds import Calibration, ThresholdRule, calibration_file
from mmseg_eomt.commands import test_anomaly as command
from mmseg_eomt.weights.sources import checkpoint_digest

NAMES = ['rba', 'eam', 'rba@2', 'eam@2']
SETS = ['course_road_anomaly', 'road_anomaly_21']


@pytest.fixture(scope='module')
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of images of several sizes, in the layouts that they are published in, and one for another model."""
    root = tmp_path_factory.mktemp('sets')
    road_anomaly_21(root)
    street_hazards(root / 'hazards')
    course(root / 'Validation_Dataset', 'RoadAnomaly', 'jpg', (0, 2))
    return root


def results(folder: Path) -> dict[str, dict]:
    return {one['name']: one for one in json.loads((folder / 'results.json').read_text())['datasets']}


@pytest.fixture(scope='module')
def checkpoint(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of :func:`base`, beside which thresholds may be written."""
    return str(shutil.copy(base, tmp_path_factory.mktemp('checkpoint')))


@pytest.fixture(scope='module')
def run(scenes: Path, base: str, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """The command as a user runs it: its config, output and folder."""
    config = make_config(scenes, tmp_path_factory.mktemp('runs') / 'test_anomaly')
    path = Path(config.work_dir).with_suffix('.py')
    config.dump(path)
    trained = shutil.copy(base, path.with_name('trained.pth'))
    arguments = ('--data-root', sets, '--scores', 'rba', 'eam', '--temperatures', 1, 2)
    log = run_tool('tools/test_anomaly.py', path, trained, *arguments).stdout
    return path, log, Path(config.work_dir) / 'anomaly'


@pytest.fixture
def tool(in_process):
    return functools.partial(in_process, command.main)


def test_every_set_below_the_folder_and_the_miou_are_in_one_table(run):
    path, log, out = run
    text = (out / 'results.md').read_text()
    assert text in log
    rows = [[cell.strip(' *') for cell in line.split('|')[1:4]] for line in text.splitlines() if line.startswith('|')][2:]
    images = dict(road_anomaly_21='3', course_road_anomaly='2')
    assert rows == [[name, images[name], score] for name in SETS for score in NAMES]
    assert 'sIoU' in text and '**mIoU' in text and 'on 4 images of test_dataloader (CityscapesDataset' in text
    assert 'street_hazards' in text and '13 classes, and this one has 19: skipped' in text
    with Image.open(out / 'curves.png') as chart:
        assert chart.width > chart.height > 500
    assert log.count('Loads checkpoint by') == 1  # one model for all
    assert f'Thresholds for tools/predict.py --calibration {path.with_name("trained.anomaly.json")}' in log
    assert not [line for line in log.splitlines() if 'mIoU: ' in line and 'AP/rba' in line]


def test_the_numbers_are_those_of_a_run_of_the_toolbox(run, checkpoint, sets):
    path, _, out = run
    config = Config.fromfile(path)
    config.load_from = checkpoint
    expected = Runner.from_cfg(config).test()
    assert results(out)['classes']['classes']['mIoU'] == expected['mIoU']
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset = dict(
        type='AnomalyDataset', preset='road_anomaly_21', data_root=str(sets / 'dataset_AnomalyTrack'), pipeline=pipeline
    )
    config.test_evaluator = dict(type='AnomalyMetric', scores=NAMES, components='anomaly')
    config.model.update(type='EoMTAnomalySegmentor')
    config.model.decode_head.update(type='EoMTAnomalyHead', anomaly_scores=['eam', 'rba@2', 'eam@2'])
    runner = Runner.from_cfg(config)
    expected = runner.test()
    found = results(out)['road_anomaly_21']
    for name in NAMES:
        for metric, value in found['scores'][name].items():
            assert (math.nan if value is None else value) == pytest.approx(expected[f'{metric}/{name}'], nan_ok=True)
        point = found['points'][name]['tpr=0.95']
        assert point['threshold'] == runner.test_evaluator.metrics[0].finished[name].tpr_threshold(0.95)


def test_a_run_that_was_stopped_goes_on_after_what_is_finished(run, checkpoint, sets, tool, tmp_path):
    path, _, finished = run
    out = Path(shutil.copytree(finished, tmp_path / 'out'))
    arguments = (path, checkpoint, '--data-root', sets, '--scores', *NAMES, '--out', out)
    before = results(out)
    files = {file.stem: file for file in (out / 'datasets').glob('*.json')}
    assert set(files) == {*SETS, 'classes'}
    log = tool(*arguments)
    assert log.count('is finished') == 3 and 'Loads checkpoint' not in log
    assert results(out) == before
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    files['road_anomaly_21'].unlink()
    assert tool(*arguments).count('is finished') == 2
    assert [name for name, file in files.items() if file.stat().st_mtime_ns != times[name]] == ['road_anomaly_21']
    assert results(out) == before
    assert 'is finished' not in tool(*arguments, '--fresh', '--presets', 'road_anomaly_21', '--no-miou')


def test_results_of_other_settings_are_not_taken_for_these(run, checkpoint, sets, tool, tmp_path):
    path, _, _ = run
    arguments = (path, checkpoint, '--data-root', sets, '--presets', 'course_road_anomaly', '--no-miou', '--out', tmp_path)
    tool(*arguments, '--scores', 'rba')
    for other in (
        ('--scores', 'max'),
        ('--scores', 'rba', '--exact'),
        ('--scores', 'rba', '--cfg-options', 'model.decode_head.query_tolerance=0.2'),
    ):
        assert 'is finished' not in tool(*arguments, *other), other
    assert 'is finished' in tool(*arguments, *other)


def test_thresholds_of_each_set_are_kept_with_the_checkpoint(run):
    path, _, out = run
    trained = str(path.with_name('trained.pth'))
    calibration = Calibration.read(calibration_file(trained, out), checkpoint_digest(trained))
    config = Config.fromfile(path)
    settings = settings_digest(config, config.test_dataloader.dataset)
    for dataset in SETS:
        found = results(out)[dataset]
        for name in NAMES:
            best = calibration.threshold(name, ThresholdRule.parse(f'best-f1@{dataset}'))
            assert best == found['scores'][name]['threshold']
            assert calibration.settings(name, ThresholdRule.parse(f'best-f1@{dataset}')) == settings
            threshold = calibration.threshold(name, ThresholdRule.parse(f'tpr=0.95@{dataset}'))
            assert threshold == found['points'][name]['tpr=0.95']['threshold']


def test_an_evaluation_is_not_lost_where_its_thresholds_cannot_be_kept(run, base, sets, tool, tmp_path):
    checkpoint = shutil.copy(base, tmp_path)
    beside = calibration_file(checkpoint, tmp_path)
    beside.write_text('{}')
    options = ('--scores', 'rba', '--presets', 'course_road_anomaly', '--no-miou', '--out', tmp_path / 'out')
    tool(run[0], checkpoint, '--data-root', sets, *options)
    assert results(tmp_path / 'out')['course_road_anomaly']['scores']['rba']['AP'] > 0
    assert beside.read_text() == '{}'


def test_a_slim_checkpoint_of_adapters_is_evaluated_like_any_other(small_config, config_file, lora, sets, tool, tmp_path):
    config = small_config(lora=True)
    arguments = (
        '--data-root',
        sets,
        '--presets',
        'course_road_anomaly',
        '--scores',
        'rba',
        'eam',
        '--out',
        tmp_path / 'out',
    )
    tool(config_file(config), lora, *arguments)
    expected = small_config(lora=True, load_from=lora, name='miou')
    found = results(tmp_path / 'out')
    assert found['classes']['classes']['mIoU'] == Runner.from_cfg(expected).test()['mIoU']
    assert set(found['course_road_anomaly']['scores']) == {'rba', 'eam'}


def test_all_scores_of_an_eomt_are_evaluated_by_default(small_config):
    config = small_config()
    assert command.score_names(config, None, [1.0])[-2:] == ['eam', 'void']
    config.model.decode_head.update(type='EoMTAnomalyHead', negative_class=True)
    assert command.score_names(config, None, [1.0])[-1] == 'uno'
    config.model.decode_head.type = 'FCNHead'
    assert command.score_names(config, None, [1.0]) == ['rba', 'rba_sum', 'max', 'energy']
    assert command.score_names(config, ['rba', 'max@0.5'], [0.5, 1]) == ['rba@0.5', 'max@0.5', 'rba']


def test_augmentations_are_averaged(run, checkpoint, sets, tool, tmp_path):
    path, _, out = run
    config = Config.fromfile(path)
    read, resize, labels, pack = config.test_pipeline
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    config.tta_pipeline = [read, dict(type='TestTimeAug', transforms=[[resize], flips, [labels], [pack]])]
    config.dump(tmp_path / 'tta.py')
    log = tool(tmp_path / 'tta.py', checkpoint, '--data-root', sets, '--scores', *NAMES, '--out', tmp_path / 'out', '--tta')
    assert 'options: tta' in log
    before, after = results(out), results(tmp_path / 'out')
    for name in SETS:
        assert before[name]['scores']['rba']['AP'] != after[name]['scores']['rba']['AP']
    assert set(before) == set(after)


def test_held_out_classes_are_found_in_the_models_own_data(scenes, small_config, config_file, tool, tmp_path):
    own = small_config().test_dataloader.dataset
    held_out = dict(type='HeldOutClassesDataset', dataset=own, anomaly_classes=['car'], split='train')
    changes = {'test_dataloader.dataset': dict(_delete_=True, **held_out), 'model.decode_head.num_classes': 18}
    config = small_config(max_iters=1, **changes)
    config.train_dataloader.dataset = dict(
        type='HeldOutClassesDataset', dataset=config.train_dataloader.dataset, anomaly_classes=['car'], split='train'
    )
    config.val_dataloader = config.test_dataloader
    runner = Runner.from_cfg(config)
    runner.train()
    path, checkpoint = config_file(config), f'{runner.work_dir}/iter_1.pth'
    tool(path, checkpoint, '--scores', 'rba', '--out', tmp_path / 'out')
    found = results(tmp_path / 'out')
    assert list(found) == ['held_out_car', 'classes']
    assert found['held_out_car']['scores']['rba']['AP'] > 0
    # the same from a config that says nothing of it, and has the toolbox's own choice of classes
    classes = list(runner.train_dataloader.dataset.metainfo['classes'])
    plain = small_config(name='plain', **{'model.decode_head.num_classes': 18})
    for split in ('train', 'val', 'test'):
        plain[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)
    arguments = (config_file(plain), checkpoint, '--scores', 'rba', '--no-miou')
    tool(*arguments, '--anomaly-classes', 'car', '--out', tmp_path / 'plain', '--device', 'cpu')
    assert results(tmp_path / 'plain')['held_out_car']['scores'] == found['held_out_car']['scores']
    log = tool(*arguments, '--anomaly-classes', 'person', check=False)
    assert 'train it without the classes to find' in log


def test_what_is_not_there_is_said(run, checkpoint, sets, tool, tmp_path):
    path, _, _ = run
    config = Config.fromfile(path)
    for name in ('val_dataloader', 'test_dataloader'):
        config[name].dataset.data_root = str(tmp_path / 'nowhere')
    config.dump(tmp_path / 'far.py')
    arguments = ('--scores', 'rba', '--out', tmp_path / 'out')
    log = tool(tmp_path / 'far.py', checkpoint, '--data-root', sets, '--presets', 'course_road_anomaly', *arguments)
    assert '- mIoU was not evaluated: No data to load: ' in log and 'is no folder' in log
    for options, message in (
        ((), '--data-root names no folder'),
        (('--data-root', tmp_path / 'none'), 'none (--data-root) is no folder'),
        (('--data-root', tmp_path), 'There is no set of anomalies to evaluate on below'),
        (('--data-root', sets, '--presets', 'lost_and_found'), 'there is course_road_anomaly, road_anomaly_21, street'),
        (('--data-root', sets, '--tta', '--cfg-options', 'tta_pipeline=None'), 'has no tta_pipeline'),
        (('--data-root', sets, '--temperatures', '0'), 'An anomaly score is one of'),
    ):
        assert message in tool(path, checkpoint, *options, check=False), message
    assert 'none.pth' in tool(path, tmp_path / 'none.pth', '--data-root', sets, check=False)


def test_two_processes_give_the_numbers_of_one(run, checkpoint, sets, tmp_path):
    path, _, out = run
    launch = ('-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}')
    arguments = ('--data-root', sets, '--scores', *NAMES, '--out', tmp_path, '--launcher', 'pytorch')
    run_tool('python', *launch, 'tools/test_anomaly.py', path, checkpoint, *arguments)
    one, two = results(out), results(tmp_path)
    for name in SETS:
        assert one[name] == two[name]


def test_sets_of_one_name_in_two_folders_are_both_evaluated(run, checkpoint, tool, tmp_path):
    path, _, _ = run
    for name in ('a', 'b'):
        lost_and_found(tmp_path / name)
    roots = (tmp_path / 'a', tmp_path / 'b', tmp_path / 'a' / 'dataset_LostAndFound')
    tool(path, checkpoint, '--data-root', *roots, '--scores', 'rba', '--no-miou', '--out', tmp_path / 'out')
    assert list(results(tmp_path / 'out')) == ['lost_and_found', 'lost_and_found_2']
