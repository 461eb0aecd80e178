"""Damaged files: no other numbers are read silently, whichever byte was hit."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from safetensors.torch import load_file, save_file

from mmseg_eomt.weights.checkpoint_io import is_whole, read_file, read_safetensors, write_safetensors

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


@pytest.mark.parametrize('damaged', ['a tensor', 'the optimizer', 'the table of contents'])
def test_a_run_whose_last_checkpoint_is_damaged_resumes_from_the_one_before(small_config, damaged):
    changes = {'default_hooks.checkpoint.interval': 1}
    Runner.from_cfg(small_config(max_iters=2, **changes)).train()
    config = small_config(max_iters=3, resume=True, **changes)
    path = Path(config.work_dir) / 'iter_2.pth'
    checkpoint, data = torch.load(path, weights_only=True), path.read_bytes()
    moments = checkpoint['optimizer']['state']
    places = {
        'a tensor': data.index(checkpoint['state_dict']['decode_head.query_embed.weight'].numpy().tobytes()) + 5,
        'the optimizer': data.index(moments[max(moments)]['exp_avg'].numpy().tobytes()) + 5,
        'the table of contents': data.rindex(b'PK\x01\x02') + 24,
    }
    flipped(path, places[damaged], 2)

    with pytest.raises(ValueError, match=re.escape(f'{path} (') + r'.*is no whole checkpoint.*damaged'):
        CheckpointLoader.load_checkpoint(str(path))
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner._load_from.endswith('iter_1.pth')
    assert runner.iter == 3


@pytest.mark.parametrize('kind', ['pth', 'legacy', 'safetensors', 'index'])
def test_damaged_files_of_others_are_read_or_one_sentence_with_their_name(tmp_path, kind):
    """Older ``.pth`` files and others' safetensors have no checksums: what stays readable cannot be told from whole ones."""
    weights, dice = {'norm.weight': torch.ones(8), 'layer.bias': torch.zeros(3, 3)}, random.Random(0)
    path = tmp_path / ('weights.index.json' if kind == 'index' else f'weights.{kind}')
    if kind in ('pth', 'legacy'):
        torch.save(dict(state_dict=weights), path, _use_new_zipfile_serialization=kind == 'pth')
    else:
        save_file(weights, tmp_path / 'weights.safetensors')
    if kind == 'index':
        path.write_text(json.dumps(dict(weight_map=dict.fromkeys(weights, 'weights.safetensors'))))
    whole, refused = path.read_bytes(), 0
    for number in range(60):
        data, place = bytearray(whole), dice.randrange(len(whole))
        if number % 3 == 0:
            data[place:] = b''
        elif number % 3 == 1:
            data[place] ^= 1 << dice.randrange(8)
        else:
            data[place : place + 9] = dice.randbytes(9)
        path.write_bytes(data)
        try:
            CheckpointLoader.load_checkpoint(str(path), logger='silent')
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(tmp_path) in str(error), error
    assert refused > 30
