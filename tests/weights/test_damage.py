"""Damaged files: no other numbers are read silently, whichever byte was hit."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmseg_eomt.weights.files import is_whole, read_file, read_safetensors, write_safetensors

KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]


@pytest.fixture
def tensors() -> dict:
    made = {str(kind).removeprefix('torch.'): torch.randn(3, 5).to(kind) for kind in KINDS}
    return {**made, 'number': torch.tensor(1.5), 'nothing': torch.zeros(0, 4), 'turned': torch.randn(4, 3).T}


def same(given: dict, expected: dict) -> bool:
    return given.keys() == expected.keys() and all(
        given[name].dtype == value.dtype
        and given[name].shape == value.shape
        and torch.equal(given[name].float(), value.float())
        for name, value in expected.items()
    )


def flipped(path: Path, place: int, bits: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def test_safetensors_of_ours_are_read_by_everyone_with_any_kind_of_tensor(tensors, tmp_path):
    path = tmp_path / 'folder' / 'weights.safetensors'
    write_safetensors(path, tensors, dict(note='{"a": 1}'))

    given, metadata = read_safetensors(path)
    assert same(given, tensors)
    assert metadata == dict(format='pt', note='{"a": 1}')
    assert same(load_file(path), tensors)
    assert same(read_file(path), tensors)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_safetensors_of_others_are_read_without_digests(tensors, tmp_path):
    plain = {name: value.contiguous() for name, value in tensors.items()}
    save_file(plain, tmp_path / 'weights.safetensors', metadata=dict(format='pt', a='b'))
    given, metadata = read_safetensors(tmp_path / 'weights.safetensors')
    assert same(given, tensors)
    assert metadata == dict(format='pt', a='b')


def test_every_damaged_byte_of_our_safetensors_is_found(tensors, tmp_path):
    path = tmp_path / 'weights.safetensors'
    write_safetensors(path, tensors, dict(note=json.dumps(dict(classes=['road', 'car']))))
    whole, metadata = path.read_bytes(), read_safetensors(path)[1]
    for place in range(0, len(whole), 7):
        flipped(path, place, 1 << place % 8)
        try:
            given, told = read_safetensors(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # the name of the digests itself
            assert same(given, tensors)
            assert told.items() >= metadata.items()
        path.write_bytes(whole)


def test_a_damaged_tensor_of_our_safetensors_is_named(tensors, tmp_path):
    path = tmp_path / 'weights.safetensors'
    write_safetensors(path, tensors)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(tensors['turned'].contiguous().numpy().tobytes())
    data[place + 7] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'weights.safetensors is damaged: turned .*[Cc]opy it again'):
        read_safetensors(path)


def test_every_damaged_byte_of_a_checkpoint_is_found_or_harmless(tmp_path):
    """Python's ``zipfile`` alone passes bytes of the table of contents by which PyTorch reads other numbers."""
    path = tmp_path / 'weights.pth'
    weights = {'0.weight': torch.randn(2, 3)}
    torch.save(dict(state_dict=weights, meta=dict(iter=3)), path)
    whole = path.read_bytes()
    found = 0
    contents = whole.index(b'PK\x01\x02')
    for place in (*range(0, contents, 7), *range(contents, len(whole))):
        flipped(path, place, 0xFF if place % 2 else 0x10)
        if is_whole(path):
            read = read_file(path)
            assert same(read['state_dict'], weights)
            assert read['meta'] == dict(iter=3)
        else:
            found += 1
            with pytest.raises(ValueError, match=re.escape(str(path))):
                read_file(path)
        path.write_bytes(whole)
    assert found > (len(whole) - contents) // 2
