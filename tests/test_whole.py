"""Files and folders are whole or not there, also where the process that writes them is killed."""

import signal

import pytest
from conftest import run_tool

from mmseg_eomt.whole import is_unfinished, whole_file, whole_folder

KILLED = """
import os, signal
from mmseg_eomt.whole import whole_file, whole_folder
with {context} as new:
    ({inner}).write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in(context: str, inner: str) -> None:
    code = KILLED.format(context=context, inner=inner)
    done = run_tool('python', '-c', code, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_file_is_the_old_one_until_it_is_whole(tmp_path):
    path = tmp_path / 'below' / 'a.txt'
    with whole_file(path) as new:
        new.write_text('one')
    with pytest.raises(ZeroDivisionError), whole_file(path) as new:
        new.write_text('two')
        raise ZeroDivisionError
    assert path.read_text() == 'one'
    assert list(path.parent.iterdir()) == [path]
    kill_in(f'whole_file({str(path)!r})', 'new')
    assert path.read_text() == 'one'
    (left,) = set(path.parent.iterdir()) - {path}
    assert is_unfinished(left / 'a.txt')
    assert not is_unfinished(path)


def test_a_folder_never_holds_files_of_two_versions(tmp_path):
    folder = tmp_path / 'adapter'
    for text in ('one', 'two'):
        with whole_folder(folder) as new:
            for name in ('a', text):
                (new / name).write_text(text)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {'a': 'two', 'two': 'two'}
    kill_in(f'whole_folder({str(folder)!r})', "new / 'a'")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {'a': 'two', 'two': 'two'}
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as new:
        raise ZeroDivisionError
    assert folder.is_dir()
