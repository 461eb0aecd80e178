"""Every kind of checkpoint through every way to use one: the right model, or an error."""

import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, run_line, run_tool
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model, init_model

from mmseg_eomt.adapters.names import adapter_names


@pytest.fixture(scope='module')
def merged(lora, tmp_path_factory) -> str:
    """The adapters of the session merged by the command, with the config that the run has dumped."""
    out = tmp_path_factory.mktemp('merged') / 'merged.pth'
    config = next(Path(lora).parent.glob('*.py'))
    log = run_tool('tools/adapter.py', 'merge', config, lora, out).stdout
    assert 'plain checkpoint' in log
    return str(out)


@pytest.fixture(scope='module')
def full(lora, base, scenes, tmp_path_factory) -> str:
    """The same adapters in a checkpoint with the base in it."""
    from conftest import make_config

    changes = {'custom_hooks.0.save': 'full', 'load_from': base}
    runner = Runner.from_cfg(make_config(scenes, tmp_path_factory.mktemp('runs') / 'full', True, 2, **changes))
    runner.train()
    return f'{runner.work_dir}/iter_2.pth'


@pytest.fixture
def checkpoints(lora, full, merged, base) -> dict[str, str]:
    return dict(slim=lora, full=full, merged=merged, folder=str(Path(lora).parent / 'adapters' / 'iter_2'), plain=base)


@pytest.fixture
def image(scenes) -> np.ndarray:
    return cv2.imread(str(next(scenes.glob('leftImg8bit/val/day/*.png'))))


def predicted(config, checkpoint: str, image: np.ndarray) -> torch.Tensor:
    return inference_model(init_model(config, checkpoint, device='cpu'), image).seg_logits.data


@pytest.fixture
def expected(small_config, checkpoints, image) -> torch.Tensor:
    """Scores of the full LoRA checkpoint through a Runner with the hook, the way of training's own evaluation."""
    runner = Runner.from_cfg(small_config(lora=True, load_from=checkpoints['full'], name='expected'))
    runner.test()
    model = runner.model
    model.cfg = runner.cfg
    return inference_model(model.eval(), image).seg_logits.data


@pytest.mark.parametrize('kind', ['slim', 'full', 'merged', 'folder'])
def test_init_model_takes_it(small_config, checkpoints, image, expected, kind):
    for lora in (True, False):  # the hook's config is of no matter: init_model runs no hooks
        scores = predicted(small_config(lora=lora), checkpoints[kind], image)
        assert torch.allclose(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(predicted(small_config(), checkpoints['plain'], image), expected, atol=1e-3)


@pytest.mark.parametrize('kind', ['slim', 'full', 'merged', 'plain'])
def test_the_inferencer_takes_it(small_config, config_file, checkpoints, image, expected, kind):
    file = config_file(small_config(lora=True))
    result = MMSegInferencer(str(file), checkpoints[kind], device='cpu')(image, return_datasamples=True, show=False)
    same = torch.allclose(result.seg_logits.data, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert same == (kind != 'plain')


@pytest.mark.parametrize('kind', ['slim', 'full', 'merged', 'folder', 'plain'])
def test_the_test_tools_runner_takes_it(small_config, checkpoints, image, expected, kind, capfd):
    runner = Runner.from_cfg(small_config(lora=True, load_from=checkpoints[kind]))
    runner.test()
    runner.model.cfg = runner.cfg
    scores = inference_model(runner.model.eval(), image).seg_logits.data
    same = torch.allclose(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert same == (kind != 'plain')
    log = ''.join(capfd.readouterr())
    assert ('evaluated is the model without LoRA' in log) == (kind == 'plain')
    assert 'do not match exactly' not in log
    assert not adapter_names(runner.model)  # merged, where there were any


def test_a_config_without_the_hook_evaluates_a_merged_checkpoint_and_refuses_adapters(small_config, checkpoints):
    assert Runner.from_cfg(small_config(load_from=checkpoints['merged'])).test()['mIoU'] >= 0
    for kind in ('slim', 'full', 'folder'):
        with pytest.raises(RuntimeError, match=r'has LoRA adapters .* add LoRAHook'):
            Runner.from_cfg(small_config(load_from=checkpoints[kind])).test()


@pytest.mark.slow
@pytest.mark.parametrize('hook', [False, True], ids=['plain config', 'LoRA config'])
def test_a_merged_checkpoint_is_evaluated_where_peft_is_not_installed(small_config, config_file, merged, tmp_path, hook):
    (tmp_path / 'peft.py').write_text('raise ModuleNotFoundError("No module named \'peft\'")\n')
    file = config_file(small_config(lora=hook))
    log = run_tool('tools/test.py', file, merged, cold=True, PYTHONPATH=str(tmp_path)).stdout
    assert 'mIoU' in log
    assert 'do not match exactly' not in log


@pytest.mark.slow
def test_where_peft_is_not_installed_adapters_ask_for_it(small_config, config_file, lora, tmp_path):
    (tmp_path / 'peft.py').write_text('raise ModuleNotFoundError("No module named \'peft\'")\n')
    file = config_file(small_config(lora=True))
    done = run_tool('tools/test.py', file, lora, check=False, cold=True, PYTHONPATH=str(tmp_path))
    assert done.returncode
    assert 'run pip install peft' in done.stdout


def test_a_merged_model_costs_nothing(small_config, checkpoints):
    plain, merged = (init_model(small_config(), checkpoints[kind], device='cpu') for kind in ('plain', 'merged'))
    assert [type(module) for module in plain.modules()] == [type(module) for module in merged.modules()]
    assert plain.state_dict().keys() == torch.load(checkpoints['merged'], weights_only=True)['state_dict'].keys()


def test_a_slim_checkpoint_finds_its_base_from_the_folder_it_was_trained_in(small_config, config_file, base, tmp_path):
    """``load_from`` is noted as the config gives it, and read from where the command runs."""
    shutil.copy(base, tmp_path / 'base.pth')
    config = small_config(lora=True, load_from='base.pth', max_iters=1)
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    file = config_file(config)
    for tool, rest in (('train.py', []), ('test.py', [f'{config.work_dir}/iter_1.pth'])):
        printed = run_line(shlex.join(map(str, ['python', ROOT / 'tools' / tool, file, *rest])), tmp_path)
    assert 'mIoU' in printed
