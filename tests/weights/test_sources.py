"""Files, folders, web addresses and the Hugging Face Hub: read through mmengine's loader, and only weights."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool
from layouts import Sizes, dinov2_release, hf_dinov3, public_eomt_dinov3
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from server import COMMIT, serve

from mmseg_eomt.weights.checkpoint import parse_checkpoint
from mmseg_eomt.weights.formats import EOMT_DINOV3
from mmseg_eomt.weights.sources import as_hub_name, check_hub_hash


def read(name: object) -> dict:
    loaded = CheckpointLoader.load_checkpoint(str(name), map_location='cpu', logger='silent')
    assert loaded['meta'] == {}
    return loaded['state_dict']


def assert_same(given: dict, expected: dict) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.fixture
def weights() -> dict:
    return dinov2_release(Sizes(3))


def in_own_process(*names: object, **env: str) -> list[str]:
    env = {'PYTHONPATH': str(ROOT), 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'HF_HUB_DISABLE_XET': '1', **env}
    lines = run_tool(Path(__file__).with_name('read_source.py'), *names, **env).stdout.splitlines()
    return [line for line in lines if line.startswith('read ') or 'Error: ' in line]


def told(weights: dict) -> str:
    return f'read {len(weights)} {sum(float(value.double().sum()) for value in weights.values()):.6f}'


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.bin', '.ckpt', '.safetensors'])
def test_every_kind_of_file_is_read(weights, tmp_path, suffix):
    path = tmp_path / f'weights{suffix}'
    if suffix == '.safetensors':
        save_file(weights, path)
    else:
        torch.save(dict(state_dict=weights) if suffix == '.ckpt' else weights, path)
    assert_same(read(path), weights)

    renamed = path.rename(tmp_path / 'weights')  # told by content
    assert_same(read(renamed), weights)


def test_a_folder_of_hugging_faces_is_read_in_one_file_or_several(weights, tmp_path):
    save_file(weights, tmp_path / 'model.safetensors')
    assert_same(read(tmp_path), weights)

    (tmp_path / 'model.safetensors').unlink()
    write_shards(weights, tmp_path)
    assert_same(read(tmp_path), weights)

    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'model-00002-of-00002.safetensors is not there.*copy all'):
        read(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=dict(a='../other.bin'))))
    with pytest.raises(ValueError, match='outside its folder'):
        read(tmp_path)


def write_shards(weights: dict, folder: Path) -> None:
    names, place = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f'model-{i:05}-of-00002.safetensors'
        save_file({name: weights[name] for name in part}, folder / file)
        place |= dict.fromkeys(part, file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=place)))


def test_an_index_that_is_wrong_is_refused_with_its_name(weights, tmp_path):
    write_shards(weights, tmp_path)
    index = tmp_path / 'model.safetensors.index.json'
    place = json.loads(index.read_text())['weight_map']
    for wrong, told in (
        (dict(place, gone='model-00001-of-00002.safetensors'), r'model-00001-of-00002.safetensors lacks gone'),
        (dict(a=index.name), r'model.safetensors.index.json names .*another index'),
        (dict(a=3), r'model.safetensors.index.json is no index'),
        (['a'], r'model.safetensors.index.json is no index'),
        ('a', r'model.safetensors.index.json is no index'),
    ):
        index.write_text(json.dumps(dict(weight_map=wrong)))
        with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + '/' + told):
            read(index)
    index.write_text('[' * 100_000)
    with pytest.raises(ValueError, match=r'index.json is no index'):
        read(index)


def test_addresses_of_files_are_paths(weights, tmp_path):
    path = tmp_path / 'a b.pth'
    torch.save(weights, path)
    assert_same(read(path.as_uri()), weights)  # file:///…/a%20b.pth
    assert_same(read(f'file://localhost{tmp_path}/a b.pth'), weights)
    with pytest.raises(FileNotFoundError, match=r'^file://elsewhere/a.pth is not there'):
        read('file://elsewhere/a.pth')


class Harmful:
    """Runs code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('source', ['file', 'legacy file', 'web'])
def test_a_file_that_would_run_code_is_refused_and_nothing_is_run(weights, tmp_path, monkeypatch, source):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    new = source != 'legacy file'
    torch.save(dict(weights, harm=Harmful(tmp_path / 'ran')), tmp_path / 'bad.pth', _use_new_zipfile_serialization=new)

    told = r'bad.pth (gave was not kept: it )?asks for (posix|os)\.mkdir, which is code.*nothing was run'
    with serve(tmp_path) as (address, _), pytest.raises(ValueError, match=told):
        read(f'{address}/bad.pth' if source == 'web' else tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()
    torch.load(tmp_path / 'bad.pth', weights_only=False)
    assert (tmp_path / 'ran').exists(), 'the file of this test does nothing'


def test_what_is_no_whole_checkpoint_is_refused_in_one_sentence(weights, tmp_path):
    torch.save(weights, tmp_path / 'cut.pth')
    save_file(weights, tmp_path / 'cut.safetensors')
    for name in ('cut.pth', 'cut.safetensors'):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf'{name} \([\d,]+ bytes\) is no whole checkpoint'):
            read(tmp_path / name)
    (tmp_path / 'page.pth').write_text('<!DOCTYPE html> not found')
    with pytest.raises(ValueError, match=r"no checkpoint: it begins with b'<!DOCTYPE ht'"):
        read(tmp_path / 'page.pth')
    (tmp_path / 'pointer.bin').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n')
    with pytest.raises(ValueError, match='git lfs pull'):
        read(tmp_path / 'pointer.bin')
    with pytest.raises(FileNotFoundError, match=r'missing.pth is not there'):
        read(tmp_path / 'missing.pth')


def test_web_addresses_are_downloaded_once_and_not_mixed_up(weights, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    other = {name: value + 1 for name, value in weights.items()}
    for folder, content in (('one', weights), ('two', other)):
        (tmp_path / 'web' / folder).mkdir(parents=True)
        torch.save(content, tmp_path / 'web' / folder / 'model.bin')
        save_file(content, tmp_path / 'web' / folder / 'model.safetensors')

    with serve(tmp_path / 'web') as (address, seen):
        for file in ('model.bin', 'model.safetensors'):
            assert_same(read(f'{address}/one/{file}'), weights)
            assert_same(read(f'{address}/two/{file}?signature=1'), other)
        assert len(seen) == 4
        with pytest.raises(OSError, match=r'three/model.bin could not be downloaded \(Not Found\): get the file elsewhere'):
            read(f'{address}/three/model.bin')
    assert_same(read(f'{address}/one/model.bin'), weights)  # the server is gone


def test_addresses_that_differ_behind_the_question_mark_are_two_files(weights, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(weights, tmp_path / 'model.pth')
    with serve(tmp_path) as (address, seen):
        read(f'{address}/model.pth?id=1')
        torch.save({name: value + 1 for name, value in weights.items()}, tmp_path / 'model.pth')
        assert torch.equal(read(f'{address}/model.pth?id=2')['cls_token'], weights['cls_token'] + 1)
        assert len(seen) == 2
        with pytest.raises(ValueError, match='names no file'):
            read(address)


@pytest.mark.parametrize('wrong', ['cut', 'page'])
def test_a_download_that_is_no_checkpoint_is_not_kept(weights, tmp_path, monkeypatch, wrong):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'model.pth'
    torch.save(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if wrong == 'cut' else b'<html>please log in</html>')
    with serve(tmp_path) as (address, _):
        with pytest.raises(ValueError, match=rf'What {address}/model.pth gave was not kept: it .*no (whole )?checkpoint'):
            read(f'{address}/model.pth')
        path.write_bytes(whole)
        assert_same(read(f'{address}/model.pth'), weights)
    assert [file.name for file in (tmp_path / 'cache').rglob('*') if file.is_file()] == ['model.pth']


@pytest.mark.parametrize('content', ['this is not a checkpoint', 'epoch 1: loss 3', 'hello world', '{}', 'pk'])
def test_text_is_no_checkpoint(tmp_path, content):
    for name in ('text.pth', 'text.safetensors', 'model.safetensors.index.json'):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf'{re.escape(name)} (\([\d,]+ bytes\) )?is no (whole )?(checkpoint|index)'):
            read(tmp_path / name)


def test_a_file_without_names_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match=r'list.pth holds a list, not weights by name'):
        read(tmp_path / 'list.pth')


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('tue-mps/some_eomt', 'is named hf://tue-mps/some_eomt'),
        ('hf:/tue-mps/some_eomt/', 'is named hf://tue-mps/some_eomt'),
        ('work_dirs/a/iter_1.pth', 'folder with one or with an adapter.$'),
        ('hf://lab/delta+nowhere.pth', 'nowhere.pth is not there'),
    ],
)
def test_a_name_that_is_nearly_right_is_told_what_it_lacks(name, told):
    with pytest.raises(FileNotFoundError, match=told):
        read(name)


@pytest.mark.parametrize(
    ('url', 'name'),
    [
        ('https://huggingface.co/o/r', 'hf://o/r'),
        ('https://huggingface.co/o/r/tree/v1', 'hf://o/r@v1'),
        ('https://huggingface.co/o/r/resolve/main/sub/a%2Bb.bin?download=true', 'hf://o/r/sub/a+b.bin@main'),
        ('https://huggingface.co/o/r/blob/refs%2Fpr%2F1/model.safetensors', 'hf://o/r/model.safetensors@refs/pr/1'),
        ('https://example.com/o/r', None),
    ],
)
def test_addresses_of_the_hub_are_read_through_it(url, name):
    assert as_hub_name(url) == name


@pytest.fixture
def hub(weights, tmp_path):
    """A Hub of three repositories: a safetensors file, an older ``.bin`` under a folder too, and a gated one in parts."""
    folder = tmp_path / 'hub'
    for repo in ('lab/new', 'lab/old/sub', 'lab/empty', 'gated/parts'):
        (folder / repo).mkdir(parents=True)
    save_file(weights, folder / 'lab/new/model.safetensors')
    for path in ('lab/old/pytorch_model.bin', 'lab/old/sub/other.pth'):
        torch.save(weights, folder / path)
    write_shards(weights, folder / 'gated/parts')
    with serve(folder, hub=True) as (address, seen):
        yield dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / 'hf'), TORCH_HOME=str(tmp_path / 'torch')), seen


def test_the_hub_is_read_through_its_cache_with_its_token_and_without_a_network(hub, weights):
    env, seen = hub
    names = ['hf://lab/new', 'hf://lab/old', 'hf://lab/old/sub/other.pth', f'hf://lab/new/model.safetensors@{COMMIT}']

    assert in_own_process(*names, 'hf://gated/parts', HF_TOKEN='secret', **env) == [told(weights)] * 5
    fetched = [path for method, path in seen if method == 'GET' and '/resolve/' in path]
    assert len(fetched) == len(set(fetched)) == 6, fetched  # the two parts and their index among them
    seen.clear()
    assert in_own_process(*names, 'hf://gated/parts', HF_HUB_OFFLINE='1', **env) == [told(weights)] * 5
    assert not seen


def test_a_file_of_the_hub_that_is_not_what_it_names_is_refused(hub, weights, tmp_path):
    env, _ = hub
    assert in_own_process('hf://lab/new', 'hf://gated/parts', HF_TOKEN='secret', **env) == [told(weights)] * 2
    files = []
    for repo, file in (('lab--new', 'model.safetensors'), ('gated--parts', 'model-00002-of-00002.safetensors')):
        (cached,) = (tmp_path / 'hf').rglob(f'models--{repo}/snapshots/*/{file}')
        damaged = bytearray(cached.read_bytes())
        damaged[-2] ^= 1
        cached.write_bytes(damaged)
        files.append(cached)
    lines = in_own_process('hf://lab/new', 'hf://gated/parts', HF_HUB_OFFLINE='1', **env)
    for line, file in zip(lines, files, strict=True):
        assert re.match(rf'ValueError: {file} is damaged: its sha256 is .*Delete {file.resolve()}', line), line


def test_a_file_of_the_hub_is_compared_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    content = b'weights' * 100
    names = hashlib.sha256(content).hexdigest(), hashlib.sha1(b'blob 700\0' + content).hexdigest()  # of LFS, and of Git
    for name in names:
        (tmp_path / name).write_bytes(content)
        (tmp_path / 'model.bin').unlink(missing_ok=True)
        (tmp_path / 'model.bin').symlink_to(tmp_path / name)
        check_hub_hash(tmp_path / 'model.bin')

        state = (tmp_path / name).stat()
        (tmp_path / name).write_bytes(content[::-1])
        os.utime(tmp_path / name, ns=(state.st_atime_ns, state.st_mtime_ns))
        check_hub_hash(tmp_path / 'model.bin')  # looks the same, and is not read
        os.utime(tmp_path / name)
        with pytest.raises(ValueError, match=rf'model.bin is damaged: its sha\d+ is .* the Hub names {name}'):
            check_hub_hash(tmp_path / 'model.bin')


def test_what_the_hub_has_not_or_does_not_give_is_one_sentence(hub):
    env, _ = hub
    lines = in_own_process(
        'hf://gated/parts', 'hf://lab/none', 'hf://lab/new@v2', 'hf://lab/new/b.pth', 'hf://lab/empty', **env
    )
    for line, expected in zip(
        (*lines, *in_own_process('hf://lab/new', 'hf://lab', HF_HUB_OFFLINE='1', **env)),
        (
            'PermissionError: hf://gated/parts: gated/parts is a gated repository',
            'FileNotFoundError: hf://lab/none: the Hub has no repository lab/none, or it is private',
            'FileNotFoundError: hf://lab/new@v2: lab/new has no revision v2.',
            'FileNotFoundError: hf://lab/new/b.pth: lab/new has no b.pth; name the file',
            'FileNotFoundError: hf://lab/empty: lab/empty has no any of model.safetensors',
            'FileNotFoundError: hf://lab/new is not in the cache, and the Hub cannot be reached',
            'ValueError: hf://lab is not of the form hf://owner/repo',
        ),
        strict=True,
    ):
        assert line.startswith(expected), line


@pytest.fixture
def delta(tmp_path):
    """Paths of an EoMT's differences to a DINOv3 and of that DINOv3, and the two contents."""
    sizes = Sizes(5, gated=False, layers=3, dims=16, heads=2, hidden=32, joint=2)
    base = hf_dinov3(sizes)
    difference = public_eomt_dinov3(sizes)
    encoder = 'network.encoder.backbone.'
    difference = {name: 0.01 * value if name.startswith(encoder) else value for name, value in difference.items()}
    save_file(base, tmp_path / 'dinov3.safetensors')
    torch.save(difference, tmp_path / 'delta.bin')
    return tmp_path / 'delta.bin', tmp_path / 'dinov3.safetensors', difference, base


def test_a_delta_and_its_base_give_the_sum(delta):
    path, base_path, difference, base = delta
    total = read(f'{path}+{base_path}')

    assert total.keys() == difference.keys()
    ours = {re.sub('^embeddings', 'patch_embed', re.sub('^layer', 'blocks', name)): v for name, v in base.items()}
    summed = 0
    for name, value in total.items():
        below = ours.get(name.removeprefix('network.encoder.backbone.'))
        expected = difference[name] if below is None else difference[name] + below
        assert torch.allclose(value, expected, rtol=1e-6, atol=1e-7), name
        summed += below is not None
    assert summed == len(base) - 1  # all but the mask token
    assert parse_checkpoint(total, 'the sum').kind == EOMT_DINOV3.name


def test_a_base_of_timm_without_biases_and_a_release_file_do_as_well(delta, tmp_path):
    path, base_path, _, base = delta
    expected = read(f'{path}+{base_path}')
    from mmseg_eomt.weights.formats import VIT_FORMATS

    formats = {known.name: known for known in VIT_FORMATS}
    ours = formats['DINOv3 of Hugging Face'].read(base)
    for name in ('DINOv3 release', 'DINOv3 of timm'):
        torch.save(formats[name].write(ours), tmp_path / 'base.pth')
        assert_same(read(f'{path}+{tmp_path}/base.pth'), expected)
    without = {n: v for n, v in formats['DINOv3 of timm'].write(ours).items() if not n.endswith(('q_bias', 'v_bias'))}
    torch.save(without, tmp_path / 'base.pth')
    total = read(f'{path}+{tmp_path}/base.pth')
    name = 'network.encoder.backbone.blocks.0.attention.q_proj.bias'
    assert torch.equal(total[name], delta[2][name])


def test_a_delta_from_the_hub_takes_its_base_from_the_hub(hub, delta, tmp_path):
    env, _ = hub
    path, base_path, _, _ = delta
    for repo, file in (('lab/delta/pytorch_model.bin', path), ('lab/dinov3/model.safetensors', base_path)):
        (tmp_path / 'hub' / repo).parent.mkdir()
        (tmp_path / 'hub' / repo).write_bytes(file.read_bytes())
    expected = told(read(f'{path}+{base_path}'))
    names = ('hf://lab/delta+hf://lab/dinov3', f'{path}+hf://lab/dinov3', f'hf://lab/delta+{base_path}')
    assert in_own_process(*names, **env) == [expected] * 3


def test_a_delta_alone_and_with_a_wrong_base_is_refused_with_what_to_pass(delta, tmp_path):
    path, base_path, difference, base = delta
    with pytest.raises(ValueError, match=r'delta.bin holds differences to DINOv3.*delta.bin\+hf://facebook/dinov3-vitl16-'):
        parse_checkpoint(read(path), str(path))
    save_file({name: value for name, value in base.items() if 'layer.2.' not in name}, tmp_path / 'short.safetensors')
    with pytest.raises(ValueError, match=r'short.safetensors .* is not the ViT that .* 13 weights do not fit'):
        read(f'{path}+{tmp_path}/short.safetensors')
    whole = dict(read(f'{path}+{base_path}'))
    torch.save(whole, tmp_path / 'whole.bin')
    with pytest.raises(ValueError, match=r'whole.bin .* holds whole weights, not differences.*leave out \+'):
        read(f'{tmp_path}/whole.bin+{base_path}')
    with pytest.raises(ValueError, match=r'whole.bin .* is an EoMT, not the ViT'):
        read(f'{path}+{tmp_path}/whole.bin')
    torch.save(difference, tmp_path / 'a+b.bin')
    assert_same(read(tmp_path / 'a+b.bin'), difference)
