"""OpenVINO's files against the model, and tools/export.py as it writes them."""

import re
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import SMALL_ARCH, make_config, relative_error
from mmseg.apis import init_model

from mmseg_eomt.commands import export
from mmseg_eomt.export import ImageToScores, to_program

openvino = pytest.importorskip('openvino', reason='the packages of the extra openvino are not installed')
pytest.importorskip('nncf', reason='the packages of the extra openvino are not installed')

from mmseg_eomt.deploy import (  # noqa: E402
    agreement,
    load_openvino,
    metadata_of,
    quantize,
    read_images,
    save_openvino,
    to_openvino,
)


@pytest.fixture(scope='module')
def module(scenes, tmp_path_factory) -> ImageToScores:
    """A small model with random weights."""
    config = make_config(scenes, tmp_path_factory.mktemp('deploy'))
    for part in ('backbone', 'decode_head'):
        config.model[part].arch = dict(SMALL_ARCH)
    torch.manual_seed(0)
    model = init_model(config, device='cpu')
    torch.nn.init.normal_(model.decode_head.class_head.weight)
    return ImageToScores(model)


@pytest.fixture(scope='module')
def converted(module):
    return to_openvino(to_program(module, (64, 80)), module.metadata(), module.output_names)


def images(*shape: int) -> torch.Tensor:
    return 255 * torch.rand(shape[0], 3, *shape[1:])


@pytest.mark.slow
def test_an_openvino_file_gives_the_models_scores_at_every_batch(module, converted, tmp_path):
    save_openvino(converted, tmp_path / 'model.xml')
    assert {path.name for path in tmp_path.iterdir()} == {'model.xml', 'model.bin'}
    run = load_openvino(tmp_path / 'model.xml')
    for batch in (1, 3):
        image = images(batch, 64, 80)
        assert relative_error(run(image), module(image)) < 1e-5, batch
    read = openvino.Core().read_model(tmp_path / 'model.xml')
    assert metadata_of(read) == module.metadata()
    assert (read.inputs[0].any_name, [output.any_name for output in read.outputs]) == ('image', ['scores'])


@pytest.mark.slow
def test_layers_with_weights_are_quantized_and_products_of_activations_are_not(module, converted):
    seen = [images(1, 64, 80) for _ in range(2)]
    int8 = quantize(converted, seen)
    assert metadata_of(int8) == module.metadata()
    weights = [op for op in int8.get_ops() if op.get_type_name() == 'Constant' and op.get_element_type().to_string() == 'i8']
    linear = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(weights) >= len(linear)
    before, after = ([op.get_type_name() for op in model.get_ops()] for model in (converted, int8))
    kind = 'ScaledDotProductAttention'
    assert before.count(kind) == after.count(kind) > 0
    run = load_openvino(int8)
    image = images(1, 64, 80)
    assert 0 < relative_error(run(image), module(image)) < 0.1
    assert agreement(run, module, [image]) > 0.9


def test_agreement_is_the_fraction_of_pixels_with_the_same_class():
    first, second = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    first[:, 1], second[:, 1] = 1, 1
    second[:, 2, 0, 0] = 2
    assert agreement(lambda image: first, lambda image: (second, image), [first]) == 0.75


def test_images_for_quantizing_are_spread_over_a_folder_and_too_few_are_refused(tmp_path):
    for i in range(12):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / str(i % 2) / f'{i:02d}.png'), np.full((4, 6, 3), (0, 0, i), np.uint8))
    given = read_images(tmp_path, (2, 3), 6)
    assert [tuple(image.shape) for image in given] == [(1, 3, 2, 3)] * 6
    assert [int(image[0, 0, 0, 0]) for image in given] == [0, 4, 8, 1, 5, 9]  # RGB
    with pytest.raises(ValueError, match=r'has 12 images, and at least 20 are needed'):
        read_images(tmp_path, (2, 3), 6, batch=4)
    (tmp_path / '0' / '00.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'00\.png cannot be read as an image'):
        read_images(tmp_path, (2, 3), 6)


def test_mistakes_end_with_one_sentence(tmp_path, monkeypatch):
    for package in ('openvino', 'nncf'):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for arguments, message in (
        (['model.xml'], r'run pip install openvino$'),
        (['model.xml', '--int8', str(tmp_path)], r'run pip install openvino nncf$'),
        (['model.onnx', '--int8', str(tmp_path)], r'a name that ends in \.xml, got model\.onnx\.$'),
        (['model.xml', '--int8', str(tmp_path / 'none')], r'and \S+none is none\.$'),
    ):
        with pytest.raises(SystemExit) as ended:
            export.main(['c.py', 'c.pth', *arguments])
        assert re.search(message, str(ended.value)), ended.value


def test_a_graph_that_openvino_cannot_convert_is_refused_in_a_sentence():
    class Stretched(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * (image.shape[2] / 3)

    rows = dict(image={2: torch.export.Dim('rows', min=2)})
    program = torch.export.export(Stretched(), (images(1, 4, 4),), dynamic_shapes=rows)
    with pytest.raises(
        ValueError, match=r'OpenVINO cannot convert the graph: fix its size if it is open, or export to ONNX\.'
    ):
        to_openvino(program, {})
