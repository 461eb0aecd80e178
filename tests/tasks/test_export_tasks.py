"""tools/export.py --tasks: one graph with an output for each task."""

import json

import onnx
import pytest
import torch
from conftest import relative_error
from packaging.version import Version

from mmseg_eomt.commands import export
from mmseg_eomt.export import load_onnx
from mmseg_eomt.tasks import load_tasks

pytest_plugins = ['small_tasks']
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version('2.7'), reason='exporting needs PyTorch 2.7, as its refusal says'
)


def test_the_graph_has_an_output_for_each_task_and_the_encoder_once(
    in_process, tasks_config, config_file, checkpoints, tmp_path
):
    config = config_file(tasks_config(day=checkpoints['day'], night=checkpoints['night'], signs=checkpoints['signs']))
    out = tmp_path / 'tasks.onnx'
    log = in_process(export.main, config, out, '--tasks', 'night', 'signs', '--size', 64, 64)
    assert 'exporting scores_night, scores_signs: batch any, size 64×64' in log

    model = load_tasks(config, ['night', 'signs'], device='cpu')
    image = 255 * torch.rand(3, 3, 64, 64)
    processed = model.data_preprocessor(dict(inputs=list(image.flip(1))))['inputs']
    with torch.no_grad():
        samples = model.predict(processed)
    for name, given in zip(model.tasks, load_onnx(out)(image), strict=True):
        expected = torch.stack([sample.tasks[name].seg_logits.data for sample in samples])
        assert relative_error(given, expected) < 1e-4

    saved = onnx.load(out)
    assert [value.name for value in saved.graph.output] == ['scores_night', 'scores_signs']
    known = {entry.key: entry.value for entry in saved.metadata_props}
    assert json.loads(known['tasks']) == ['night', 'signs']
    assert json.loads(known['classes_signs']) == ['none', 'sign', 'pole']
    encoder = sum(p.numel() for p in model.backbone.parameters())
    written = sum(torch.Size(value.dims).numel() for value in saved.graph.initializer)
    assert written < sum(p.numel() for p in model.parameters()) + encoder / 2


def test_what_does_not_go_together_is_refused(in_process, tasks_config, small_config, config_file, base, tmp_path):
    config, plain = config_file(tasks_config()), config_file(small_config())
    for arguments, message in (
        ((config, 'tasks.onnx', '--tasks', 'dsuk'), "no task 'dsuk': the tasks are day, dusk, night, signs"),
        ((config, base, 'tasks.onnx', '--tasks', 'all'), '--tasks takes the checkpoints of the config'),
        ((plain, 'plain.onnx'), 'CHECKPOINT is missing'),
    ):
        assert message in in_process(export.main, *arguments, check=False)
