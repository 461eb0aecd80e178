"""A folder of an adapter holds the files of one adapter, and what a user has put beside them."""

import json
import os
import shutil
import signal

import pytest
import torch
from folders import CONFIG, WEIGHTS, rewrite, saved, small

from mmseg_eomt.adapters import load_adapter
from mmseg_eomt.adapters.peft_folder import read_folder

ONES = torch.ones(1, 8)


@pytest.mark.parametrize('last_call', [1, 2, 3])
def test_a_folder_that_is_written_over_another_and_killed_never_has_files_of_both(tmp_path, monkeypatch, last_call):
    folder, calls = tmp_path / 'a', []

    def dying(move):
        def call(*args, **kwargs):
            move(*args, **kwargs)
            calls.append(move)
            if len(calls) == last_call:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    expected = {alpha: saved(tmp_path / str(alpha), alpha)(ONES) for alpha in (8, 16)}
    saved(folder, 8)
    child = os.fork()
    if not child:
        monkeypatch.setattr(os, 'replace', dying(os.replace))
        monkeypatch.setattr(os, 'rename', dying(os.rename))
        saved(folder, 16)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    if not folder.exists():
        (left,) = set(tmp_path.iterdir()) - {tmp_path / '8', tmp_path / '16'}  # between two renames: both are in there
        assert {path.name for path in left.iterdir()} == {'old', 'new'}
        with pytest.raises(ValueError, match='was not written to its end'):
            load_adapter(small(), left / 'new')
        return
    model = small()
    load_adapter(model, folder)
    assert torch.equal(model(ONES), expected[json.loads((folder / CONFIG).read_text())['lora_alpha']])


def test_files_of_two_folders_are_refused(tmp_path):
    for name, alpha in (('one', 8), ('two', 16)):
        saved(tmp_path / name, alpha)
    shutil.copy(tmp_path / 'two' / CONFIG, tmp_path / 'one' / CONFIG)
    with pytest.raises(ValueError, match=r'one holds files of two adapters: adapter_config.json is not the one'):
        load_adapter(small(), tmp_path / 'one')


def test_a_config_with_other_line_ends_is_the_same(tmp_path):
    expected = saved(tmp_path / 'a')(ONES)
    config = tmp_path / 'a' / CONFIG
    config.write_bytes(config.read_bytes().replace(b'\n', b'\r\n'))
    model = small()
    load_adapter(model, tmp_path / 'a')
    assert torch.equal(model(ONES), expected)


def test_folders_of_earlier_versions_have_no_digests_and_load(tmp_path):
    expected = saved(tmp_path / 'a')(ONES)
    rewrite(tmp_path / 'a', lambda weights: None)
    model = small()
    load_adapter(model, tmp_path / 'a')
    assert torch.equal(model(ONES), expected)


@pytest.mark.parametrize('left', [CONFIG, WEIGHTS])
def test_a_folder_that_an_earlier_version_left_half_written_is_refused(tmp_path, left):
    saved(tmp_path / 'a')
    (tmp_path / 'a' / f'{left}.new').touch()
    with pytest.raises(ValueError, match=r'a was not written to its end'):
        load_adapter(small(), tmp_path / 'a')


@pytest.mark.parametrize('lost', [CONFIG, WEIGHTS])
def test_a_folder_without_one_of_its_files_is_refused(tmp_path, lost):
    saved(tmp_path / 'a')
    (tmp_path / 'a' / lost).unlink()
    with pytest.raises(FileNotFoundError, match=r'a is no adapter in the format of PEFT: it needs'):
        load_adapter(small(), tmp_path / 'a')


def test_other_files_in_the_folder_are_kept(tmp_path):
    folder = tmp_path / 'a'
    saved(folder)
    (folder / 'README.md').write_text('mine')
    (folder / 'logs').mkdir()
    (folder / 'logs' / 'one.txt').write_text('mine too')
    (tmp_path / 'link').symlink_to(folder)
    saved(tmp_path / 'link', alpha=16)
    assert (tmp_path / 'link').is_symlink()
    assert (folder / 'README.md').read_text() == 'mine' and (folder / 'logs' / 'one.txt').read_text() == 'mine too'
    assert read_folder(folder)['meta']['adapter']['peft']['lora_alpha'] == 16
    assert {path.name for path in tmp_path.iterdir()} == {'a', 'link'}


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='is there already, and is no folder of an adapter'):
        saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
