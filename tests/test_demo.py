"""The demo deletes its own earlier files, and nobody else's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from mmseg_eomt.commands import demo as demo_command


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """The tool in a folder of its own, with commands that write what the real ones do; ``demo('--overwrite')`` runs it."""
    monkeypatch.setattr(demo_command.DEMO, 'root', tmp_path)
    monkeypatch.setattr(demo_command.DEMO, 'run_shown', lambda title, command: (pretend(tmp_path, command[1:]), []))
    return lambda *args: demo_command.main(args)


def pretend(root: Path, command: list[str]) -> int:
    """Write the files of a command of the demo; its status."""
    script, name = command[0], Path(command[1]).stem
    (root / 'work_dirs/demo.log').write_text(script)
    if script.endswith('make_street_scenes.py'):
        for folder, end in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds')):
            path = root / f'data/street_scenes/{folder}/val/dusk/dusk_000000_000019_{end}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('L', (8, 4)).save(path)
    elif script.endswith('train.py'):
        folder = root / 'work_dirs' / name
        folder.mkdir()
        torch.save(dict(state_dict={'a.lora_A': torch.zeros(2)}), folder / f'iter_{200 if "lora" in name else 600}.pth')
    else:
        folder = root / command[command.index('--work-dir') + 1]
        for path in (folder / 'predictions', folder / '1'):
            path.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 8), np.uint8)).save(folder / 'predictions/dusk_000000_000019_leftImg8bit.png')
        (folder / '1/1.json').write_text(json.dumps(dict(mIoU=60 if 'lora' in folder.name else 20)))
    return 0


def test_a_second_run_starts_over_without_a_question(demo, tmp_path):
    for _ in range(2):
        demo()
        assert (tmp_path / 'work_dirs/demo.png').is_file()


@pytest.mark.parametrize(
    'name',
    [
        'work_dirs/eomt_lora_demo/adapter/x.safetensors',
        'work_dirs/eomt_demo/iter_600.pth',
        'data/street_scenes/gtFine/val/dusk/dusk_000001_000019_gtFine_labelTrainIds.png',
    ],
)
def test_what_others_have_put_there_or_changed_stays_unless_it_may_be_overwritten(demo, tmp_path, name):
    demo()
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text('of the user')
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(SystemExit, match=f'demo: {name} would be deleted or replaced, .* or give --overwrite'):
        demo()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*') if path.is_file()} == before
    demo('--overwrite')
    assert name.startswith('data') or not own.is_file() or own.read_bytes() != b'of the user'


def test_a_training_before_the_first_demo_stays(demo, tmp_path):
    own = tmp_path / 'work_dirs/eomt_demo/iter_600.pth'
    own.parent.mkdir(parents=True)
    own.write_text('of the user')
    with pytest.raises(SystemExit, match=r'demo: work_dirs/eomt_demo/iter_600\.pth would be deleted'):
        demo()
    assert own.read_text() == 'of the user'


def test_a_run_that_was_interrupted_can_be_started_again(demo, tmp_path, monkeypatch):
    def interrupted(title: str, command: list[str]) -> None:
        pretend(tmp_path, command[1:])
        if command[1].endswith('train.py'):
            raise KeyboardInterrupt
        return 0, []

    with monkeypatch.context() as patch:
        patch.setattr(demo_command.DEMO, 'run_shown', interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo()
    assert (tmp_path / 'work_dirs/eomt_demo/iter_600.pth').is_file()
    demo()


SLOW_TOOL = """
import itertools, pathlib, sys, time
folder = pathlib.Path('work_dirs/eomt_demo')
folder.mkdir(exist_ok=True)
for i in itertools.count():
    (folder / f'iter_{i}.pth').write_text('half of a training')
    print(f'Iter(train) {i}', flush=True)
    time.sleep(0.05)
"""


def killed_demo(root: Path, number: int) -> None:
    """A demo in ``root`` whose first command would write for ever, ended by a signal in its midst."""
    (root / 'tools').mkdir()
    (root / 'tools/make_street_scenes.py').write_text(SLOW_TOOL)
    code = 'import pathlib, sys; from mmseg_eomt.commands.demo import *; DEMO.root = pathlib.Path(sys.argv.pop()); main()'
    with subprocess.Popen([sys.executable, '-c', code, root], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(root.glob('work_dirs/eomt_demo/*'))) < 20:
            time.sleep(0.05)
        process.send_signal(number)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_demo_has_left_is_its_own_and_what_is_put_there_later_is_not(demo, tmp_path, number):
    killed_demo(tmp_path, number)
    time.sleep(0.5)
    left = sorted(tmp_path.rglob('work_dirs/eomt_demo/*'))
    own = tmp_path / 'work_dirs/eomt_demo/adapter.safetensors'
    own.write_text('of the user')
    now = time.time() + 60
    os.utime(own, (now, now))
    with pytest.raises(SystemExit, match=r'demo: work_dirs/eomt_demo/adapter\.safetensors would be deleted'):
        demo()
    assert len(left) >= 20 and sorted(tmp_path.rglob('work_dirs/eomt_demo/*.pth')) == left  # its command has ended, too
    own.unlink()
    demo()
    assert [path.name for path in (tmp_path / 'work_dirs/eomt_demo').iterdir()] == ['iter_600.pth']


@pytest.mark.parametrize(('argument', 'status'), [('--help', 0), ('configs/eomt_demo.py', 2)])
def test_help_and_unknown_arguments_change_nothing(demo, tmp_path, capsys, argument, status):
    own = tmp_path / 'work_dirs/eomt_demo/iter_600.pth'
    own.parent.mkdir(parents=True)
    own.write_text('of the user')
    with pytest.raises(SystemExit) as ended:
        demo(argument)
    said = capsys.readouterr()
    assert ended.value.code == status and '--overwrite' in said.out + said.err
    assert own.read_text() == 'of the user' and not (tmp_path / 'work_dirs/demo.log').exists()
