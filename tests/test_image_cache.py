"""Cached images have the pixels of their files, whatever happens to either."""

import copy
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS

from mmseg_eomt.data import image_cache
from mmseg_eomt.data.image_cache import LEDGER, LoadImageFromFile

SHAPE = (37, 53, 3)  # of no whole number of words
ENTRY = 64 + -(-37 * 53 * 3 // 8) * 8  # bytes


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Four images of random pixels."""
    names = [str(tmp_path / f'{i}.png') for i in range(4)]
    for i, name in enumerate(names):
        cv2.imwrite(name, np.random.default_rng(i).integers(0, 256, SHAPE, np.uint8))
    return names


def loader(tmp_path: Path, **options) -> LoadImageFromFile:
    """A transform with a cache."""
    return TRANSFORMS.build(dict(type='LoadImageFromFile', cache_dir=str(tmp_path / 'cache'), **options))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the cache tells."""
    messages: list[str] = []
    monkeypatch.setattr('mmseg_eomt.data.image_cache.print_log', lambda message, *_: messages.append(message))
    return messages


def load(transform: LoadImageFromFile, path: str) -> np.ndarray:
    """An image through a transform."""
    return transform(dict(img_path=path))['img']


def entries(tmp_path: Path) -> list[Path]:
    """Files of the cache."""
    return sorted((tmp_path / 'cache').glob('*.pixels'))


def never(*_, **__) -> None:
    """In place of what decodes."""
    raise AssertionError('decoded')


def test_an_image_is_decoded_once_and_has_the_same_pixels(files, tmp_path, monkeypatch):
    plain = [cv2.imread(file) for file in files]
    transform = loader(tmp_path)
    assert all(np.array_equal(load(transform, file), image) for file, image in zip(files, plain))
    monkeypatch.setattr('mmcv.imfrombytes', never)
    for _ in range(2):  # a transform that writes on its image changes no entry
        for file, image in zip(files, plain):
            results = loader(tmp_path)(dict(img_path=file))
            assert np.array_equal(results['img'], image)
            assert results['img_shape'] == results['ori_shape'] == SHAPE[:2]
            results['img'][:] = 0


def test_a_reader_of_other_options_has_entries_of_its_own(files, tmp_path):
    load(loader(tmp_path), files[0])
    gray = load(loader(tmp_path, color_type='grayscale'), files[0])
    assert np.array_equal(gray, cv2.imread(files[0], cv2.IMREAD_GRAYSCALE))
    assert np.array_equal(load(loader(tmp_path, color_type='grayscale'), files[0]), gray)
    assert len(entries(tmp_path)) == 2


def test_a_changed_file_is_decoded_again_in_the_place_of_its_entry(files, tmp_path):
    transform = loader(tmp_path)
    load(transform, files[0])
    other = cv2.imread(files[1])
    cv2.imwrite(files[0], other)
    os.utime(files[0], ns=(1, 1))
    assert np.array_equal(load(transform, files[0]), other)
    assert np.array_equal(load(transform, files[0]), other)
    assert len(entries(tmp_path)) == 1
    assert json.loads((tmp_path / 'cache' / LEDGER).read_text())['bytes'] == ENTRY


@pytest.mark.parametrize('damage', ['cut', 'bit', 'zeros', 'empty', 'folder'])
def test_a_damaged_entry_is_said_to_be_and_written_again(files, tmp_path, damage, said):
    transform, plain = loader(tmp_path), cv2.imread(files[0])
    load(transform, files[0])
    entry = entries(tmp_path)[0]
    content = bytearray(entry.read_bytes())
    if damage == 'cut':
        content = content[:-800]
    elif damage == 'bit':
        content[3000] ^= 4
    elif damage == 'zeros':
        content[1024:2048] = bytes(1024)
    elif damage == 'empty':
        content = bytearray()
    entry.write_bytes(content)
    if damage == 'folder':
        entry.write_bytes(np.full(len(content) // 8, 7, '<u8').tobytes())  # of another program
    assert np.array_equal(load(transform, files[0]), plain)
    assert sum('is damaged' in message for message in said) == 1
    assert np.array_equal(load(transform, files[0]), plain)
    assert sum('is damaged' in message for message in said) == 1
    assert json.loads((tmp_path / 'cache' / LEDGER).read_text())['bytes'] == sum(f.stat().st_size for f in entries(tmp_path))


def test_the_bound_holds_and_each_run_mentions_it_once(files, tmp_path, said):
    for _ in range(2):
        transform = loader(tmp_path, cache_size=f'{2.5 * ENTRY / 1e6:.6f}MB')
        for worker in (transform, copy.copy(transform)):
            for file in files:
                assert np.array_equal(load(worker, file), cv2.imread(file))
    assert len(entries(tmp_path)) == 2
    assert sum('has reached' in message for message in said) == 2
    transform = loader(tmp_path)
    for file in files:
        load(transform, file)
    assert len(entries(tmp_path)) == 4


def test_the_bound_is_mentioned_by_the_main_process(files, tmp_path, monkeypatch, said):
    transform = loader(tmp_path, cache_size=f'{1.5 * ENTRY / 1e6:.6f}MB')
    for is_main in (False, True):
        monkeypatch.setattr(image_cache, 'is_main_process', lambda is_main=is_main: is_main)
        process = copy.deepcopy(transform)
        for file in files:
            load(process, file)
        assert sum('has reached' in message for message in said) == is_main


def test_deleted_entries_make_room_and_unfinished_ones_go(files, tmp_path):
    size = f'{1.5 * ENTRY / 1e6:.6f}MB'
    transform = loader(tmp_path, cache_size=size)
    for file in files[:2]:
        load(transform, file)
    [entry] = entries(tmp_path)
    entry.unlink()
    unfinished = entry.with_name(f'.{entry.name}.new-abc')
    unfinished.mkdir()
    transform = loader(tmp_path, cache_size=size)
    assert not unfinished.exists()
    load(transform, files[1])
    assert len(entries(tmp_path)) == 1


def test_what_another_process_is_writing_stays(files, tmp_path):
    transform = loader(tmp_path)
    unfinished = tmp_path / 'cache' / '.any.pixels.new-abc'
    unfinished.mkdir()
    with transform.cache._lock(image_cache.fcntl.LOCK_SH):
        loader(tmp_path)
    assert unfinished.exists()


def _load_all(folder: str, paths: list[str]) -> int:
    transform = loader(Path(folder), cache_size=f'{2.5 * ENTRY / 1e6:.6f}MB')
    return sum(int(load(transform, path).sum()) for path in paths * 5)


def test_processes_share_a_cache_within_its_bound(files, tmp_path):
    expected = 5 * sum(int(cv2.imread(file).sum()) for file in files)
    with ProcessPoolExecutor(4, get_context('fork')) as pool:
        orders = [files, files[::-1], files[2:] + files[:2], files]
        assert list(pool.map(_load_all, [str(tmp_path)] * 4, orders)) == [expected] * 4
    assert len(entries(tmp_path)) == 2
    assert json.loads((tmp_path / 'cache' / LEDGER).read_text())['bytes'] == 2 * ENTRY


def test_a_ledger_that_a_killed_process_has_left_empty_is_counted_again(files, tmp_path):
    load(loader(tmp_path), files[0])
    (tmp_path / 'cache' / LEDGER).write_text('{"byt')
    load(loader(tmp_path), files[1])
    assert json.loads((tmp_path / 'cache' / LEDGER).read_text())['bytes'] == 2 * ENTRY


def test_a_disk_that_takes_nothing_more_stops_the_cache_and_not_the_run(files, tmp_path, monkeypatch, said):
    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    transform = loader(tmp_path)
    monkeypatch.setattr('mmseg_eomt.data.image_cache.whole_file', full)
    for file in files:
        assert np.array_equal(load(transform, file), cv2.imread(file))
    assert sum('takes no further images' in message for message in said) == 1


def test_wrong_options_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match='cache_size is a size such as'):
        loader(tmp_path, cache_size='much')
    with pytest.raises(ValueError, match='drop it, or backend_args'):
        loader(tmp_path, backend_args=dict(backend='local'))
    with pytest.raises(ValueError, match='drop it, or to_float32'):
        loader(tmp_path, to_float32=True)
    with pytest.raises(OSError, match='cannot be written to'):
        TRANSFORMS.build(dict(type='LoadImageFromFile', cache_dir=f'{files[0]}/cache'))
    cv2.imwrite(files[0], np.zeros(SHAPE, np.uint16))
    with pytest.raises(ValueError, match='is uint16: drop cache_dir'):
        load(loader(tmp_path, color_type='unchanged'), files[0])


def test_a_missing_file_is_the_toolbox_s_affair(tmp_path):
    assert loader(tmp_path, ignore_empty=True)(dict(img_path='nowhere.png')) is None
    with pytest.raises(FileNotFoundError):
        load(loader(tmp_path), 'nowhere.png')
