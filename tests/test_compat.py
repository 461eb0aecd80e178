"""The repairs of mmseg_eomt.patches.repairs and the check of packages, on real files, a real server and fresh processes."""

import http.server
import subprocess
import sys
import threading
from functools import partial
from importlib import import_module, metadata

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, free_port
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmseg_eomt import requirements
from mmseg_eomt.adapters.config import import_peft

lite_only = pytest.mark.skipif(hasattr(import_module('mmcv._ext'), '__file__'), reason='mmcv has its compiled ops')


class GetattrAttack:
    """Uses the allowed getattr on something else than HistoryBuffer."""

    def __reduce__(self):
        return (getattr, (np.ndarray, 'tofile'))


def fresh_python(code: str, **env: str) -> subprocess.CompletedProcess:
    command = ['python', '-c', code]
    return subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=120)


@lite_only
def test_a_compiled_op_that_is_not_there_says_what_to_install():
    from mmcv.ops import nms

    with pytest.raises(RuntimeError, match=r'is a compiled op of mmcv.*pip install mmcv'):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@lite_only
def test_full_mmcv_keeps_its_own_ops(tmp_path):
    (tmp_path / '_ext.py').write_text('def __getattr__(name): return "compiled"')
    code = (
        f'import mmcv; mmcv.__path__.append({str(tmp_path)!r}); import mmseg_eomt, sys\n'
        'import mmcv._ext; print(mmcv._ext.nms, mmcv._ext.__file__)'
    )
    done = fresh_python(code)
    assert done.stdout.split()[-2:] == ['compiled', str(tmp_path / '_ext.py')], done.stderr


@pytest.mark.parametrize('module', ['mmseg', 'mmcv', 'mmengine', 'scipy', 'ftfy'])
def test_a_missing_package_is_one_sentence_with_the_command(module):
    code = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)
import mmseg_eomt
"""
    done = fresh_python(code)
    assert done.returncode == 1
    assert 'is not installed: run pip install "' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize('version', ['1.0.0', '9.9'])
def test_a_version_that_does_not_fit_is_one_sentence_with_the_command(monkeypatch, version):
    found = metadata.version
    monkeypatch.setattr(metadata, 'version', lambda name: version if name == 'mmsegmentation' else found(name))
    expected = rf'but {version} is installed: run pip install "mmsegmentation>=1.2.2,<2"'
    with pytest.raises(ImportError, match=expected):
        requirements.check_packages()


@pytest.fixture
def uninstalled(monkeypatch):
    """A checkout on PYTHONPATH."""

    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    requirements.asked.cache_clear()
    monkeypatch.setattr(metadata, 'requires', requires)
    yield
    requirements.asked.cache_clear()


def test_a_checkout_is_checked_without_being_installed(uninstalled, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda name: '1.0.0')
    with pytest.raises(ImportError, match=r'mmseg_eomt needs torch>=2\.6,<3, but 1\.0\.0 is installed'):
        requirements.check_packages()


def test_what_lies_beside_an_installed_package_is_not_read(uninstalled, monkeypatch, tmp_path):
    (tmp_path / 'pyproject.toml').write_text('[project]\nname = "another"\ndependencies = ["torch<1"]\n')
    monkeypatch.setattr(requirements, 'PYPROJECT', tmp_path / 'pyproject.toml')
    assert requirements.asked() == {}


@pytest.mark.parametrize('name', ['mmcv-lite', 'mmengine', 'mmsegmentation'])
def test_a_fork_is_taken_whatever_its_version(monkeypatch, name):
    def refusal(installed: str) -> str | None:
        """What the check says where one package alone is installed, in a version beyond all bounds."""

        def version(package: str) -> str:
            if package == installed:
                return '99.0'
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, 'version', version)
        try:
            requirements.check(name)
        except ImportError as error:
            return str(error)
        return None

    assert refusal(f'onedl-{name.removesuffix("-lite")}') is None
    assert '99.0 is installed' in refusal(name)


def test_an_old_peft_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.delitem(sys.modules, 'peft')
    monkeypatch.setattr(metadata, 'version', lambda name: '0.17.1')
    with pytest.raises(ImportError, match=r'needs peft>=0\.18, but 0\.17\.1 is installed: run pip install "peft>=0\.18"'):
        import_peft()


def test_mmengines_log_history_loads_with_weights_only(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(history=buffer, scalar=np.float64(0.5), state_dict=dict(w=torch.ones(2))), tmp_path / 'a.pth')

    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))

    assert checkpoint['history'].mean() == 1.5
    assert checkpoint['scalar'] == 0.5


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(OSError, match=r'could not be downloaded.*path, for a ViT as model.vit.pretrained'):
        CheckpointLoader.load_checkpoint('http://127.0.0.1:9/dinov2.pth')


def test_every_process_of_a_distributed_run_loads_from_a_url(tmp_path):
    torch.save(dict(w=torch.ones(2)), tmp_path / 'weights.pth')
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = f"""
import mmseg_eomt
from mmengine.dist import init_dist
from mmengine.runner import CheckpointLoader
init_dist('pytorch')
weights = CheckpointLoader.load_checkpoint('http://127.0.0.1:{server.server_port}/weights.pth')
assert weights['w'].sum() == 2
"""
        both = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), TORCH_HOME=str(tmp_path))
        ranks = [
            subprocess.Popen(['python', '-c', code], cwd=ROOT, env=environment(**both, RANK=rank, LOCAL_RANK=rank))
            for rank in ('0', '1')
        ]
        assert [rank.wait(120) for rank in ranks] == [0, 0]
        server.shutdown()


def test_getattr_is_served_for_the_log_history_alone(tmp_path):
    torch.save(dict(a=GetattrAttack()), tmp_path / 'attack.pth')
    with pytest.raises(Exception, match=r'only weights and log history are read'):
        torch.load(tmp_path / 'attack.pth', weights_only=True)
