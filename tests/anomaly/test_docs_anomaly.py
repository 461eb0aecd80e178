"""What docs/anomaly.md, anomaly_data.md and anomaly_training.md show works as it stands, with small models and made data."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_config
from made_sets import road_anomaly_21
from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmseg.utils import register_all_modules
from outlier_files import write_coco
from server import serve
from test_anomaly_configs import recipe
from test_docs import HUB_MODEL, STEPS, Checkout, commands, hub  # noqa: F401  a fixture

from mmseg_eomt.anomaly import OUTLIER_SOURCES

PAGES = ('docs/anomaly.md', 'docs/anomaly_data.md', 'docs/anomaly_training.md')
ELSEWHERE = ('pip install', 'make ', 'python -c "from mmseg_eomt.anomaly.data.fishyscapes')  # test_fishyscapes.py
RECIPE = 'eomt_rba_cityscapes_1024'


def code(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(encoding='utf-8'), re.S)


@pytest.fixture(scope='module')
def checkout(scenes: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose configs are small, with the data and the trained model that the pages speak of."""
    made = Checkout(tmp_path_factory.mktemp('checkout') / 'mmseg-eomt', scenes)
    road_anomaly_21(made.folder / 'data' / 'anomaly')
    write_coco(made.folder / 'coco')
    shutil.copytree(made.folder / 'my_images', made.folder / 'data' / 'bravo' / 'bravo_ACDC')
    small = recipe(f'{RECIPE}.py', scenes, made.folder / 'coco', Path(f'work_dirs/{RECIPE}'), base)
    small.dump(made.folder / 'configs' / 'anomaly' / f'{RECIPE}.py')
    lora = make_config(scenes, made.folder / 'work_dirs' / 'eomt_lora_cityscapes', True, STEPS, load_from=base)
    lora.dump(made.folder / 'configs' / 'eomt_lora_cityscapes.py')
    made.run('python tools/train.py configs/eomt_lora_cityscapes.py')
    return made


@pytest.mark.slow
def test_every_command_of_the_pages_runs_in_its_order(checkout, hub, tmp_path_factory):  # noqa: F811
    """docs/anomaly.md, docs/anomaly_data.md, docs/anomaly_training.md."""
    lines = [line for page in PAGES for line in commands(page) if not line.startswith(ELSEWHERE)]
    lines.sort(key=lambda line: 'tpr=0.95' in line)  # needs what test_anomaly keeps
    home = str(tmp_path_factory.mktemp('hf'))
    printed = {}
    with serve(hub, hub=True) as (address, _):
        for line in dict.fromkeys(lines):
            short = line.replace('nproc_per_node 4', 'nproc_per_node 2')
            printed[line] = checkout.run(short, HF_ENDPOINT=address, HF_HOME=home, HF_HUB_DISABLE_XET='1', PYTHONPATH='.')
            trained = checkout.folder / 'work_dirs' / RECIPE / 'iter_2.pth'
            if trained.exists():
                shutil.copy(trained, trained.with_name('iter_8000.pth'))
    assert len(printed) > 10
    for line, log in printed.items():
        if 'test_anomaly.py' in line:
            assert '| road_anomaly_21 |' in log and 'mIoU' in log, log[-3000:]
        if 'find_presets' in line:
            assert "'preset': 'road_anomaly_21'" in log
    for name in (
        'predictions/anomaly/heatmaps/0.png',
        'predictions/anomaly/masks/0.png',
        'outputs/anomaly_p/EoMT-RbA/AnomalyTrack-all/validation0000.hdf5',
        'outputs/bravo/bravo_ACDC/0_conf.png',
        'work_dirs/eomt_lora_cityscapes/iter_79608.anomaly.json',
        'work_dirs/anomaly.onnx',
        'outliers.png',
    ):
        assert (checkout.folder / name).is_file(), name


@pytest.mark.parametrize('page', PAGES)
def test_every_type_that_the_page_writes_is_registered(page):
    register_all_modules()
    registries = (MODELS, DATASETS, TRANSFORMS, METRICS, HOOKS, OUTLIER_SOURCES)
    for block in code(page):
        for name in re.findall(r"type='(\w+)'", block):
            assert any(registry.get(name) for registry in registries), name


def test_the_tables_of_the_page_are_those_of_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # the benchmark sets it
    benchmark = importlib.import_module('anomaly_camvid')
    figures = json.loads((ROOT / benchmark.RESULTS).read_text())['figures']
    page = (ROOT / 'docs/anomaly.md').read_text(encoding='utf-8')
    assert len(figures) == 2
    for variants in figures.values():
        assert all(set(by_seed) == {'0', '1', '2'} for by_seed in variants.values())
        assert benchmark.table(variants) in page


def test_the_python_of_the_page_on_metrics_runs(capsys):
    (block,) = (block for block in code('docs/anomaly_data.md') if 'ScoreCounts' in block)
    torch.manual_seed(0)
    exec(block, {})
    printed = capsys.readouterr().out
    assert "'AP'" in printed and "'mean_F1'" in printed
