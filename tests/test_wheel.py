"""A wheel of the package works outside the repository, configs and commands included."""

import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
from conftest import ROOT, environment, small_options

from mmseg_eomt import requirements

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's contents, as an environment would have them."""
    folder = tmp_path_factory.mktemp('wheel')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
    build = folder / 'source'
    for name in ('mmseg_eomt', 'configs', 'tools'):
        shutil.copytree(ROOT / name, build / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, build)
    # the environment's own setuptools: nothing is downloaded
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', folder, build], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run([*pip, 'install', '--no-deps', '--target', folder / 'site', wheel], check=True)
    return folder / 'site'


def run(installed: Path, folder: Path, *args: object, check: bool = True) -> str:
    command = ['python', str(installed / 'bin' / 'mmseg-eomt'), *map(str, args)]
    done = conftest.run(command, folder, environment(PYTHONPATH=str(installed)))
    assert not check or not done.returncode, done.stdout[-4000:]
    return done.stdout


def test_it_holds_every_config_and_tool_and_mims_index(installed):
    mim = installed / 'mmseg_eomt' / '.mim'
    for folder in ('configs', 'tools'):
        ours, packed = (
            {path.relative_to(root) for kind in ('*.py', '*.sh') for path in (root / folder).rglob(kind)}
            for root in (ROOT, mim)
        )
        assert ours == packed
    index = (mim / 'model-index.yml').read_text()
    named = [line.split(': ')[1] for line in index.splitlines() if line.strip().startswith('Config: ')]
    assert named and all((mim / name).is_file() for name in named)


def test_it_trains_and_predicts_outside_with_a_config_of_its_own(installed, scenes, tmp_path):
    text = "_base_ = 'mmseg_eomt::eomt_lora_tiny_cityscapes.py'\n"
    options = {key: value for key, value in small_options(scenes, tmp_path / 'run', 1).items() if key != 'experiment_name'}
    (tmp_path / 'small.py').write_text(text)
    script = tmp_path / 'make.py'
    script.write_text(
        'import mmseg_eomt\nfrom mmengine.config import Config\n'
        f'assert mmseg_eomt.__file__.startswith({str(installed)!r})\n'
        f"config = Config.fromfile('small.py')\nconfig.merge_from_dict({options!r})\nconfig.dump('run.py')\n"
    )
    done = conftest.run(['python', str(script)], tmp_path, environment(PYTHONPATH=str(installed)))
    assert not done.returncode, done.stdout
    log = run(installed, tmp_path, 'train', 'run.py')
    assert 'of all parameters train' in log and 'Iter(train) [1/1]' in log
    image = next(scenes.glob('leftImg8bit/val/day/*.png'))
    log = run(installed, tmp_path, 'predict', 'run.py', 'run/iter_1.pth', image)
    assert (tmp_path / 'predictions' / 'overlays' / image.name).is_file()


def test_the_command_lists_its_tools_and_refuses_others(installed, tmp_path):
    log = run(installed, tmp_path)
    assert all(name in log for name in ('train', 'dist_train', 'predict', 'init_dataset', 'show_queries', 'adapter'))
    assert "there is no command 'trian'" in run(installed, tmp_path, 'trian', check=False)
    assert 'mmseg_eomt has no such config' in run(installed, tmp_path, 'train', 'mmseg_eomt::none.py', check=False)


def test_a_config_is_found_by_its_name(installed, tmp_path):
    log = run(installed, tmp_path, 'toolbox', 'misc/print_config', 'mmseg_eomt::datasets/eomt_lora_loveda.py')
    assert 'num_classes=7' in log


def test_it_asks_for_what_pyproject_asks_for(installed, tmp_path):
    code = 'from mmseg_eomt import requirements as r; print(r.PYPROJECT.exists(), *r.asked().values(), sep="\\n")'
    env = environment(cold=True, PYTHONPATH=str(installed))
    beside, *asked = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    assert beside == 'False'
    assert [line.partition(';')[0] for line in asked] == list(map(str, requirements.asked().values()))
