"""tools/export.py --anomaly: anomaly scores as a second output of the graph."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from conftest import make_config, relative_error, run_tool
from mmengine.config import Config
from mmseg.apis import init_model
from packaging.version import Version

from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.scores import NAMES, OF_CLASSES
from mmseg_eomt.commands import export
from mmseg_eomt.export import ImageToScores, difference, load_onnx, load_program, save_program, to_program

exporting = pytest.mark.skipif(
    Version(torch.__version__) < Version('2.7'), reason='exporting needs PyTorch 2.7, as its refusal says'
)
EVERY = [*NAMES, 'rba@0.5', 'eam@2']
IMAGE = 255 * torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def config(scenes, tmp_path_factory) -> Config:
    return make_config(scenes, tmp_path_factory.mktemp('export'))


@pytest.fixture(scope='module')
def make_module(config):
    """Make what is exported of a small model with random weights, the same ones each time."""

    def make(names: list[str], asked: list[str] | None = None) -> ImageToScores:
        torch.manual_seed(0)
        model = init_model(with_anomaly_scores(config, names if asked is None else asked), device='cpu')
        torch.nn.init.normal_(model.decode_head.class_head.weight)
        return ImageToScores(model, names)

    return make


def test_the_second_output_has_the_scores_in_their_order(make_module):
    plain = make_module([])
    scores, anomaly = make_module(EVERY)(IMAGE)
    assert anomaly.shape == (2, len(EVERY), 48, 80)
    assert torch.equal(scores, plain(IMAGE))
    for name, function in OF_CLASSES.items():
        assert torch.equal(anomaly[:, EVERY.index(name)], function(scores)), name
    assert relative_error(anomaly[:, EVERY.index('rba@0.5')], anomaly[:, 0]) > 1e-3


def test_a_model_that_predicts_more_than_is_asked_for_gives_what_is_asked_for(make_module):
    scores, anomaly = make_module(['rba', 'void'], asked=['eam', 'void', 'rba@2'])(IMAGE)
    assert torch.equal(anomaly, make_module(['rba', 'void'])(IMAGE)[1])
    assert torch.equal(make_module([], asked=['eam', 'rba@2'])(IMAGE), scores)


def test_a_score_that_the_model_does_not_predict_is_refused(make_module):
    with pytest.raises(ValueError, match='does not predict the anomaly scores eam, rba@2: make the config with'):
        make_module(['rba', 'eam', 'rba@2'], asked=[])


@exporting
def test_without_anomalies_the_exported_graph_is_as_before(make_module):
    class Before(ImageToScores):
        def forward(self, image):
            image = (image - self.mean) / self.std
            return self.segmentor.encode_decode(image, [dict(img_shape=image.shape[-2:])])

    module = make_module([])
    before = Before(module.segmentor)
    graphs = [str(to_program(each, (48, 80), 1).graph) for each in (module, before)]
    assert graphs[0] == graphs[1]


@exporting
def test_a_reloaded_program_gives_both_outputs_at_every_size(make_module, tmp_path):
    module = make_module(EVERY)
    save_program(to_program(module), tmp_path / 'model.pt2', module.metadata())
    extra = {'metadata.json': ''}
    torch.export.load(tmp_path / 'model.pt2', extra_files=extra)
    assert json.loads(json.loads(extra['metadata.json'])['anomaly_scores']) == EVERY
    run = load_program(tmp_path / 'model.pt2')
    assert difference(module, run, [IMAGE, 255 * torch.rand(1, 3, 64, 64)]) < 1e-5


@exporting
def test_a_difference_in_the_second_output_is_seen(make_module):
    module = make_module(['rba'])
    scores, anomaly = module(IMAGE)
    assert difference(module, lambda image: (scores, anomaly), [IMAGE]) == 0
    assert difference(module, lambda image: (scores, 0.9 * anomaly), [IMAGE]) == pytest.approx(0.1, rel=1e-4)


@exporting
@pytest.mark.slow
def test_the_command_exports_and_checks_both_outputs(base, tmp_path):
    config, out = next(Path(base).parent.glob('*.py')), tmp_path / 'model.onnx'
    log = run_tool('tools/export.py', config, base, out, '--anomaly', *EVERY).stdout
    assert 'largest difference' in log
    model = onnx.load(out)
    assert [value.name for value in model.graph.output] == ['scores', 'anomaly']
    dims = model.graph.output[1].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ['batch', len(EVERY), 'height', 'width']
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(known['anomaly_scores']) == EVERY and len(json.loads(known['classes'])) == 19
    module = ImageToScores(init_model(with_anomaly_scores(Config.fromfile(config), EVERY), base, device='cpu'), EVERY)
    for given, expected in zip(load_onnx(out)(IMAGE), module(IMAGE)):
        assert relative_error(given, expected) < 1e-4


def test_a_name_that_is_no_score_ends_with_one_sentence(base, tmp_path, capsys):
    config = next(Path(base).parent.glob('*.py'))
    with pytest.raises(SystemExit) as end:
        export.main([str(config), base, str(tmp_path / 'model.onnx'), '--anomaly', 'rbe'])
    assert 'export: An anomaly score is one of rba, rba_sum' in str(end.value) and "got 'rbe'" in str(end.value)
