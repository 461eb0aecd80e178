"""The demo of anomalies: its steps, its table and its verdict, with commands that write what the real ones do."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from PIL import Image

from mmseg_eomt.commands import demo_anomaly as command
from mmseg_eomt.commands.make_street_scenes import main as make_street_scenes

RESULTS = {
    'eomt_anomaly_demo': dict(AP=10.0, FPR95=50.0, mIoU=80.0),
    'eomt_lora_rba_demo': dict(AP=40.0, FPR95=20.0, mIoU=79.0),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The tool in a folder of its own; ``run(AP=…)`` changes what the model scores after RbA, and returns the commands."""

    def start(*args: str, **after: float) -> list[list[str]]:
        commands: list[list[str]] = []
        results = RESULTS | {'eomt_lora_rba_demo': RESULTS['eomt_lora_rba_demo'] | after}

        def shown(title: str, line: list[str]):
            commands.append(line[1:])
            pretend(tmp_path, line[1:], results)
            return 0, []

        monkeypatch.setattr(command.DEMO, 'run_shown', shown)
        command.main(args)
        return commands

    monkeypatch.setattr(command.DEMO, 'root', tmp_path)
    return start


def pretend(root: Path, line: list[str], results: dict[str, dict[str, float]]) -> None:
    """Write the files of a command of the demo."""
    script, name = Path(line[0]).stem, Path(line[1]).stem
    if script == 'make_street_scenes':
        sizes = dict(train=1, val=1, anomalies=8, height=64, width=128)
        make_street_scenes([str(root / line[1]), *(f'--{name}={value}' for name, value in sizes.items())])
    elif script == 'train':
        folder = root / 'work_dirs' / name
        folder.mkdir()
        (folder / f'iter_{300 if "rba" in name else 600}.pth').write_text('weights')
    elif script == 'test_anomaly':
        values = results[name]
        scores = {score: {key: values[key] for key in ('AP', 'FPR95')} for score in command.SCORES}
        datasets = [dict(scores=scores, classes={}), dict(scores={}, classes=dict(mIoU=values['mIoU']))]
        out = root / line[line.index('--out') + 1]
        out.mkdir()
        (out / 'results.json').write_text(json.dumps(dict(datasets=datasets)))
    else:
        assert script == 'predict'
        out = root / line[line.index('--out') + 1] / 'anomaly/scores'
        out.mkdir(parents=True)
        for image in (Path(part) for part in line if part.endswith('.png')):
            assert (root / image).is_file()
            np.save(out / f'{image.stem}.npy', np.full((64, 128), -0.7, np.float32))


def test_it_trains_and_evaluates_twice_and_draws_both(run, tmp_path, capsys):
    commands = [Path(line[0]).stem for line in run()]
    assert commands == ['make_street_scenes', 'train', 'test_anomaly', 'train', 'test_anomaly', 'predict', 'predict']
    said = capsys.readouterr().out
    assert 'rba            10.00     50.00     40.00     20.00' in said
    assert 'mIoU           80.00               79.00' in said
    assert Image.open(tmp_path / 'work_dirs/demo_anomaly.png').size == (2 * 4 * 128, 2 * command.NUM_DRAWN * 64 + 28)


def test_the_commands_name_the_checkpoints_that_the_configs_write_and_load(run):
    lines = run()
    checkpoints = [line[2] for line in lines if Path(line[0]).stem == 'test_anomaly']
    base, rba = (Config.fromfile(ROOT / 'configs' / f'{name}.py') for name in RESULTS)
    assert rba.load_from == checkpoints[0] == f'work_dirs/eomt_anomaly_demo/iter_{base.train_cfg.max_iters}.pth'
    assert checkpoints[1] == f'work_dirs/eomt_lora_rba_demo/iter_{rba.train_cfg.max_iters}.pth'
    for config in (base, rba):
        assert config.train_dataloader.dataset.data_root == config.val_dataloader.dataset.data_root == str(command.SCENES)


@pytest.mark.parametrize('name', RESULTS)
def test_a_config_of_the_demo_makes_a_model_that_learns_from_what_its_pipeline_labels(name):
    register_all_modules()
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    pastes = 'PasteOutliers' in [step.type for step in config.train_dataloader.dataset.pipeline]
    assert (getattr(MODELS.build(config.model).decode_head, 'loss_outlier', None) is not None) == pastes


@pytest.mark.parametrize(
    ('after', 'message'), [(dict(AP=15.0), 'gained 5.0 points of AP'), (dict(mIoU=60.0), 'lost 20.0 points of mIoU')]
)
def test_it_fails_if_rba_finds_no_more_or_costs_classes(run, tmp_path, after, message):
    with pytest.raises(SystemExit, match=f'demo_anomaly: RbA {message}'):
        run(**after)
    assert (tmp_path / 'work_dirs/demo_anomaly.png').is_file()


def test_a_second_run_starts_over_and_spares_what_others_have_put_there(run, tmp_path):
    for _ in range(2):
        run()
    own = tmp_path / 'data/street_anomalies/RoadAnomaly21/images/street_9999.png'
    own.write_text('of the user')
    with pytest.raises(SystemExit, match=r'demo_anomaly: data/.*street_9999\.png would be deleted or replaced'):
        run()
    assert own.read_text() == 'of the user'
    run('--overwrite')
