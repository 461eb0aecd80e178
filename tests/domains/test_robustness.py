"""tools/robustness.py: a model on its own data, in other domains and on corrupted images, in one table."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import free_port, make_config, run_tool
from made_domains import MADE
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmseg_eomt.commands import robustness as command
from mmseg_eomt.domains.report import Report, Result
from mmseg_eomt.domains.robustness import Plan, kinds_of


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A folder ``data`` with all domains; the labels of Mapillary are not converted."""
    root = tmp_path_factory.mktemp('robustness') / 'data'
    for folder, make in MADE.values():
        make(root / folder)
    return root


@pytest.fixture(scope='module')
def model(data) -> tuple[Path, Path]:
    """Config and checkpoint of a small model whose own data is the Cityscapes in the folder."""
    config = make_config(data / 'cityscapes', data.parent / 'run', max_iters=1)
    path = data.parent / 'model.py'
    config.dump(path)
    register_all_modules()
    torch.manual_seed(0)
    checkpoint = path.with_suffix('.pth')
    torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), checkpoint)
    return path, checkpoint


@pytest.fixture
def tool(in_process, model):
    return functools.partial(in_process, command.main, *model)


def rows(text: str) -> dict[str, list[str]]:
    """Cells of all tables, by what stands first."""
    cells = [[cell.strip(' *') for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]
    return {row[0]: row[1:] for row in cells}


ARGUMENTS = ('--corruptions', 'blur', 'fog', '--severities', 1, 5)
DOMAINS = ['acdc_fog', 'acdc_night', 'acdc_rain', 'acdc_snow', 'bdd100k', 'dark_zurich', 'nighttime_driving']


@pytest.fixture(scope='module')
def run(data, model) -> Path:
    """The folder of a whole evaluation."""
    out = data.parent / 'out'
    command.main([*map(str, (*model, '--data-root', data, *ARGUMENTS, '--out', out))])
    return out


def test_found_domains_and_corruptions_are_in_the_tables(run, data):
    text = (run / 'results.md').read_text()
    table = rows(text)
    domains = list(table)[2 : 2 + len(DOMAINS) + 2]
    assert domains == ['own data', *DOMAINS, 'mean of the others']  # Cityscapes is the own data
    assert table['own data'][0] == '3' and table['own data'][-1] == '100.0' and table['bdd100k'][0] == '2'
    assert table['corruption'] == ['1', '5', 'mean', 'of own']
    kinds = ['defocus_blur', 'motion_blur', 'gaussian_blur']
    assert list(table)[-6:] == [*kinds, 'blur', 'fog', 'all']
    mean = sum(float(table[kind][0]) for kind in kinds) / 3
    assert float(table['blur'][0]) == pytest.approx(mean, abs=0.006)
    assert re.search(rf'mapillary \({data}/mapillary\) was not evaluated: 1 of 1 labels are missing.*convert_domain', text)


def test_the_numbers_are_those_of_the_toolbox(run, model, data):
    numbers = {
        (one['name'], one['severity']): one['metrics']['mIoU']
        for one in json.loads((run / 'results.json').read_text())['results']
    }
    config = Config.fromfile(model[0])
    config.load_from, config.work_dir = str(model[1]), str(run / 'again')
    pipeline = config.test_dataloader.dataset.pipeline
    assert Runner.from_cfg(config).test()['mIoU'] == numbers['own data', 0]
    pipeline.insert(1, dict(type='Corrupt', kind='fog', severity=5))
    config.experiment_name = 'fog'
    assert Runner.from_cfg(config).test()['mIoU'] == numbers['fog', 5]


def test_what_is_finished_is_not_evaluated_again(run, tool, data):
    before = (run / 'results.json').read_text()
    arguments = ('--data-root', data, *ARGUMENTS, '--out', run)
    assert '16 datasets were finished' in tool(*arguments)
    assert (run / 'results.json').read_text() == before
    (run / 'parts' / 'fog_5.json').write_text('{"key": ')
    output = tool(*arguments)
    assert '15 datasets were finished' in output and output.count('Loads checkpoint by') == 1
    assert (run / 'results.json').read_text() == before


def test_domains_and_corruptions_can_be_chosen(tool, data, tmp_path):
    arguments = ('--data-root', data, '--domains', 'bdd100k', '--corruptions', '--out', tmp_path)
    table = rows(tool(*arguments))
    assert 'bdd100k' in table and 'dark_zurich' not in table and 'corruption' not in table
    assert kinds_of(['weather', 'fog', 'contrast']) == ['fog', 'snow', 'brightness', 'contrast']
    for options, message in (
        (('--domains', 'kitti'), f'kitti cannot be found in {data}, which has these domains: acdc_fog, '),
        (('--corruptions', 'frost'), 'frost is no corruption: there are gaussian_noise'),
        (('--severities', '6'), 'severity of Corrupt is 1, 2, 3, 4 or 5, got 6'),
        (('--cfg-options', 'test_dataloader=None'), 'has no test_dataloader'),
    ):
        assert message in tool('--data-root', data, *options, '--out', tmp_path, check=False), message


def test_domains_of_other_classes_are_noted(data, model):
    config = Config.fromfile(model[0])
    config.test_dataloader.dataset.metainfo = dict(classes=('road', 'sky'))
    plan = Plan(config)
    plan.add_domains(data, ['bdd100k'])
    assert [part.name for part in plan.parts] == ['own data']
    assert plan.notes == [f'bdd100k ({data}/bdd100k) was not evaluated: its 19 classes are not the 2 of the model']


def test_a_report_of_a_model_that_finds_nothing_has_no_relative_numbers():
    results = [Result('own data', 0, 3, dict(mIoU=0.0, mAcc=5.0, aAcc=5.0)), Result('fog', 3, 3, dict(mIoU=0.0))]
    table = rows(Report('none', {}, results).markdown())
    assert table['own data'][-1] == table['all'][-1] == '–'


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run, model, data, tmp_path):
    launch = ('-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}')
    arguments = ('--data-root', data, *ARGUMENTS, '--out', tmp_path, '--launcher', 'pytorch')
    run_tool('python', *launch, 'tools/robustness.py', *model, *arguments)
    one, two = (json.loads((folder / 'results.json').read_text())['results'] for folder in (run, tmp_path))
    assert one == two
