"""Exported graphs against the model, and tools/export.py and docs/deploy.md as a user runs them."""

import json
import os
import re
import shlex
import signal
from pathlib import Path

import onnx
import pytest
import torch
from conftest import ROOT, SMALL_ARCH, make_config, relative_error, run_tool
from mmseg.apis import init_model
from packaging.version import Version

from mmseg_eomt.export import (
    ImageToScores,
    difference,
    example_images,
    load_onnx,
    load_program,
    save_onnx,
    save_program,
    to_program,
    whole_model,
)
from mmseg_eomt.models import graph_scores
from mmseg_eomt.models.resize import _resized_by_products, resize_pos_embed

exporting = pytest.mark.skipif(
    Version(torch.__version__) < Version('2.7'), reason='exporting needs PyTorch 2.7, as its refusal says'
)
PAGE = (ROOT / 'docs' / 'deploy.md').read_text(encoding='utf-8')
ROPE_ARCH = dict(SMALL_ARCH, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv')
SHAPES = [(1, 64, 64), (2, 48, 80), (3, 128, 32), (1, 32, 112)]


@pytest.fixture(scope='module')
def make_module(scenes, tmp_path_factory):
    """Make what is exported, of a small model with random weights."""

    def make(arch: dict = SMALL_ARCH, **changes) -> ImageToScores:
        config = make_config(scenes, tmp_path_factory.mktemp('export'))
        for part in ('backbone', 'decode_head'):
            config.model[part].arch = dict(arch)
        config.merge_from_dict(changes)
        torch.manual_seed(0)
        model = init_model(config, device='cpu')
        torch.nn.init.normal_(model.decode_head.class_head.weight)
        return ImageToScores(model)

    return make


def images(*shape: int) -> torch.Tensor:
    return 255 * torch.rand(shape[0], 3, *shape[1:])


@pytest.fixture(scope='module', params=[SMALL_ARCH, ROPE_ARCH], ids=['learned positions', 'rotary positions'])
def followed(request, make_module) -> tuple[ImageToScores, torch.export.ExportedProgram]:
    module = make_module(request.param)
    return module, to_program(module)


@pytest.mark.slow
@exporting
def test_one_onnx_file_gives_the_models_scores_at_every_batch_and_size(followed, tmp_path):
    module, program = followed
    save_onnx(program, tmp_path / 'model.onnx', {})
    run = load_onnx(tmp_path / 'model.onnx')
    for shape in SHAPES:
        image = images(*shape)
        assert relative_error(run(image), module(image)) < 1e-5, shape


@exporting
def test_a_reloaded_program_gives_the_models_scores_at_every_batch_and_size(followed, tmp_path):
    module, program = followed
    save_program(program, tmp_path / 'model.pt2', module.metadata())
    extra = {'metadata.json': ''}
    torch.export.load(tmp_path / 'model.pt2', extra_files=extra)
    assert json.loads(extra['metadata.json'])['patch_size'] == '16'
    run = load_program(tmp_path / 'model.pt2')
    for shape in SHAPES:
        image = images(*shape)
        assert relative_error(run(image), module(image)) < 1e-5, shape


@pytest.mark.slow
@exporting
def test_weights_in_a_second_file_take_their_place_with_the_first(make_module, monkeypatch, tmp_path):
    monkeypatch.setattr('torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD', 0)  # is 1.5 GB
    module = make_module()
    save_onnx(to_program(module, (48, 48), 1), tmp_path / 'model.onnx', {})
    assert {path.name for path in tmp_path.iterdir()} == {'model.onnx', 'model.onnx.data'}
    image = images(1, 48, 48)
    assert relative_error(load_onnx(tmp_path / 'model.onnx')(image), module(image)) < 1e-5


@pytest.mark.parametrize('last_call', [1, 2, 3])
def test_an_export_that_is_killed_leaves_no_model_beside_weights_of_another(tmp_path, monkeypatch, last_call):
    path, replace, calls = tmp_path / 'model.onnx', os.replace, []

    def write(version: str) -> None:
        with whole_model(path) as new:
            new.write_text(version)
            new.with_name(f'{new.name}.data').write_text(version)

    def dying(*args):
        replace(*args)
        calls.append(args)
        if len(calls) == last_call:
            os.kill(os.getpid(), signal.SIGKILL)

    write('old')
    child = os.fork()
    if not child:
        monkeypatch.setattr(os, 'replace', dying)
        write('new')
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.exists() == (last_call == 3)
    write('newer')
    assert path.read_text() == path.with_name('model.onnx.data').read_text() == 'newer'


def test_a_program_that_is_half_written_is_not_there(tmp_path, monkeypatch):
    def save(program, path, **kwargs):
        Path(path).write_bytes(b'half')
        raise OSError('no space is left')

    monkeypatch.setattr(torch.export, 'save', save)
    with pytest.raises(OSError, match='no space'):
        save_program(None, tmp_path / 'model.pt2', {})
    assert not list(tmp_path.iterdir())


@exporting
@pytest.mark.parametrize('for_onnxruntime', [False, True], ids=['standard', 'own operators'])
def test_a_fixed_size_need_not_be_whole_patches(make_module, tmp_path, monkeypatch, for_onnxruntime):
    monkeypatch.setattr(graph_scores, 'STRIP_ELEMENTS', 10**4)
    module = make_module()
    save_onnx(to_program(module, (50, 77), 1), tmp_path / 'model.onnx', {}, for_onnxruntime=for_onnxruntime)
    nodes = {node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node}
    assert ({'MultiHeadAttention', 'Gelu'} <= nodes) == for_onnxruntime
    image = images(1, 50, 77)
    assert relative_error(load_onnx(tmp_path / 'model.onnx')(image), module(image)) < 1e-5
    (shape,) = (value.type.tensor_type.shape for value in onnx.load(tmp_path / 'model.onnx').graph.input)
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 50, 77]


@pytest.mark.parametrize('grid', [(7, 5), (4, 9), (2, 3), (1, 6), (4, 6)])
def test_positions_by_products_are_those_of_interpolation(grid):
    positions = torch.randn(1, 24, 8)
    expected = resize_pos_embed(positions, (4, 6), grid)
    given = _resized_by_products(positions, (4, 6), grid)
    assert torch.equal(given, expected) if grid == (4, 6) else relative_error(given, expected) < 1e-6


def test_the_module_takes_rgb_and_normalises_as_the_preprocessor_does(make_module):
    image = images(1, 64, 64).round()
    module = make_module()
    fed = module.segmentor.data_preprocessor(dict(inputs=[image[0].flip(0).byte()]))['inputs']  # the toolbox reads BGR
    expected = module.segmentor.encode_decode(fed, [dict(img_shape=(64, 64))])
    assert torch.equal(module(image), expected)


def test_a_model_of_bgr_gets_the_channels_in_its_order(make_module):
    mean = [103.53, 116.28, 123.675]
    image = images(1, 64, 64).round()
    module = make_module(**{'model.data_preprocessor.bgr_to_rgb': False, 'model.data_preprocessor.mean': mean})
    fed = module.segmentor.data_preprocessor(dict(inputs=[image[0].flip(0).byte()]))['inputs']
    expected = module.segmentor.encode_decode(fed, [dict(img_shape=(64, 64))])
    assert torch.equal(module(image), expected)
    assert json.loads(module.metadata()['mean']) == mean[::-1]


def test_every_query_is_exported_whatever_query_tolerance_says(make_module):
    image = images(1, 64, 64)
    given, expected = make_module(**{'model.decode_head.query_tolerance': 0.5}), make_module()
    assert torch.equal(given(image), expected(image))


@exporting
def test_another_head_on_the_vit_is_exported(make_module):
    head = dict(_delete_=True, type='FCNHead', in_channels=32, channels=8, num_convs=1, num_classes=5)
    config = make_module().segmentor.cfg
    config.merge_from_dict({'model.backbone.num_joint_blocks': 0, 'model.decode_head': head})
    module = ImageToScores(init_model(config, device='cpu'))
    image = images(2, 48, 80)
    assert relative_error(to_program(module).module()(image), module(image)) < 1e-5


@exporting
def test_a_model_that_torch_export_cannot_follow_is_named(make_module, monkeypatch):
    module = make_module()
    real = module.segmentor.backbone.forward
    monkeypatch.setattr(module.segmentor.backbone, 'forward', lambda x: real(x * float(x.sum() > 0)))
    with pytest.raises(ValueError, match=r'cannot follow EoMTViT with EoMTHead\.'):
        to_program(module)


def test_only_a_segmentor_is_exported():
    with pytest.raises(ValueError, match=r'Only a segmentor .* got Linear'):
        ImageToScores(torch.nn.Linear(1, 1))


def test_the_check_takes_two_sizes_and_two_batches_or_the_fixed_ones(make_module):
    module = make_module()
    assert [tuple(image.shape) for image in example_images(module)] == [(1, 3, 64, 64), (2, 3, 32, 48)]
    assert [tuple(image.shape) for image in example_images(module, (50, 77), 4)] == [(4, 3, 50, 77)]


def test_scores_that_are_not_numbers_never_pass_for_equal(make_module):
    module = make_module()
    apart = difference(
        module, lambda image: module(image) * (1 if len(image) == 1 else float('nan')), example_images(module)
    )
    assert not apart <= 1


@exporting
@pytest.mark.slow
def test_the_command_exports_a_slim_checkpoint_as_the_model_with_adapters(lora, tmp_path):
    config, out = next(Path(lora).parent.glob('*.py')), tmp_path / 'model.onnx'
    log = run_tool('tools/export.py', config, lora, out).stdout
    assert re.search(r'largest difference \S+ of the largest score, on random images 1×3×64×64, 2×3×32×48', log)
    assert re.search(r'PyTorch \S+ ms per image, ONNX Runtime \(CPUExecutionProvider\) \S+ ms, speed-up \S+:', log)
    assert 'Warning' not in log
    adapted = init_model(str(config), lora, device='cpu')
    assert any('lora_' in name for name in adapted.state_dict())
    image = images(2, 48, 80)
    processor = adapted.data_preprocessor
    with torch.no_grad():
        expected = adapted.encode_decode((image - processor.mean) / processor.std, [dict(img_shape=image.shape[-2:])])
    assert relative_error(load_onnx(out)(image), expected) < 1e-5

    model = onnx.load(out)
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known['classes']) == list(adapted.dataset_meta['classes'])
    assert json.loads(known['mean']) == [123.675, 116.28, 103.53]
    assert known['patch_size'] == '16' and known['input'] == 'RGB, 0 to 255'
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', 3, 'height', 'width']


@exporting
@pytest.mark.slow
def test_a_file_that_fails_the_check_is_not_kept(lora, tmp_path):
    config, out = next(Path(lora).parent.glob('*.py')), tmp_path / 'model.onnx'
    done = run_tool('tools/export.py', config, lora, out, '--tolerance', 0, '--size', 48, 48, check=False)
    assert done.returncode == 1
    assert 'more than --tolerance 0' in done.stdout.splitlines()[-1] and 'is not kept' in done.stdout
    assert not out.exists()


def test_mistakes_end_with_one_sentence(tmp_path):
    (tmp_path / 'there.onnx').touch()
    (tmp_path / 'beside.bin').touch()
    (tmp_path / 'onnxscript.py').write_text('raise ModuleNotFoundError("No module named \'onnxscript\'")\n')
    for out, message in (
        ('model.pth', r'OUT must end in \.onnx \(ONNX\), \.pt2 \(torch\.export\) or \.xml \(OpenVINO\), got '),
        ('there.onnx', r'there\.onnx is there already'),
        ('beside.xml', r'beside\.bin is there already'),
        ('model.onnx', 'run pip install onnx onnxscript onnxruntime'),
    ):
        path = str(tmp_path)
        done = run_tool('tools/export.py', 'c.py', 'c.pth', tmp_path / out, check=False, PYTHONPATH=path)
        assert done.returncode == 1
        assert re.search(message, done.stdout.splitlines()[-1])
        assert 'Traceback' not in done.stdout


@exporting
@pytest.mark.slow
def test_the_page_runs(lora, scenes, tmp_path):
    files = {
        'configs/eomt_lora_demo.py': next(Path(lora).parent.glob('*.py')),
        'work_dirs/eomt_lora_demo/iter_200.pth': lora,
        'work_dirs/': f'{tmp_path}/',
        'image.png': next(scenes.glob('leftImg8bit/val/day/*.png')),
        'data/street_scenes': scenes,
    }
    ran, sizes, names = [], [], {}
    for kind, block in re.findall(r'```(bash|python)\n(.*?)```', PAGE, re.S):
        for shown, file in files.items():
            block = block.replace(shown, str(file))
        if kind == 'python':
            exec(block, names)
            sizes.append(names['labels'].shape)
            continue
        for line in block.strip().splitlines():
            if not line.startswith('pip '):
                # the small model's weights are random
                line += ' --agreement 0' if '--int8' in line else ''
                ran.append(run_tool(*shlex.split(line)[1:]).stdout)
    assert len(ran) == 7
    assert sizes == [(64, 128), (64, 128), (2, 320, 640)]
    (of_int8,) = [output for output in ran if 'int8: ' in output]
    assert re.search(r'int8: \S+ MB, \S+% of the pixels of the other \d+ get the same class', of_int8)
    assert re.search(r'PyTorch \S+ ms per image, OpenVINO \(CPU\) \S+ ms, speed-up', of_int8)
    assert set(json.loads(names['extra']['metadata.json'])) == {'input', 'patch_size', 'mean', 'std', 'classes'}
