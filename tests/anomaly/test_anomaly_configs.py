"""The recipes of configs/anomaly train from the checkpoints that they are for, and keep slim ones."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_ARCH, small_recipe
from mmengine.config import Config
from mmengine.runner import Runner
from outlier_files import write_coco

CONFIGS = sorted(path.name for path in (ROOT / 'configs' / 'anomaly').glob('*.py'))
RECIPES = [name for name in CONFIGS if 'demo' not in name]
CONTINUED = 'eomt_lora_rba_cityscapes.py'  # of a run with LoRA
HEADS = ('decode_head.class_head', 'decode_head.mask_head')


@pytest.fixture(scope='session')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('coco')
    write_coco(folder)
    return folder


def recipe(name: str, scenes: Path, coco: Path, work_dir: Path, load_from: str) -> Config:
    """A recipe with a small model on small scenes, for two steps."""
    config = small_recipe(f'anomaly/{name}', 64)
    for loader in ('train_dataloader', 'test_dataloader'):
        config[loader].dataset.data_root = str(scenes)
    (paste,) = (step for step in config.train_dataloader.dataset.pipeline if step['type'] == 'PasteOutliers')
    paste.source.update(images=str(coco / 'train2017'), annotations=str(coco / 'instances_train2017.json'), min_area=1)
    paste.update(prob=1.0, min_pixels=4)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    changes = {
        'work_dir': str(work_dir),
        'experiment_name': f'{work_dir.name}_{name}',
        'load_from': load_from,
        'model.vit.arch': dict(_delete_=True, **SMALL_ARCH),
        'optim_wrapper.accumulative_counts': 1,
        'param_scheduler.0.warmup_steps': (0, 0),
        'train_cfg.max_iters': 2,
        'default_hooks.checkpoint.interval': 2,
        'train_dataloader.batch_size': 2,
    }
    config.merge_from_dict(changes)
    return config


def start(name: str) -> str:
    """The fixture of the checkpoint that a recipe starts from."""
    return 'lora' if name == CONTINUED else 'base'


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_trains_what_it_says_and_its_slim_checkpoint_is_evaluated(name, scenes, coco, tmp_path, request):
    source = request.getfixturevalue(start(name))
    config = recipe(name, scenes, coco, tmp_path / 'run', source)
    runner = Runner.from_cfg(config)
    runner.train()

    model = runner.model
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    with_lora = 'lora' in name
    assert any(key.startswith(HEADS[0]) for key in trained)
    assert any(key.startswith(HEADS[1]) for key in trained)
    assert any('lora_' in key for key in trained) == with_lora
    assert all(key.startswith(HEADS) or 'lora_' in key for key in trained)
    logged = runner.message_hub.log_scalars
    assert ('train/decode.loss_outlier' in logged) == ('uno' not in name)
    assert ('train/margin' in logged) == ('arcface' in name)

    saved = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=True)['state_dict']
    assert not any('mlp' in key for key in saved)
    tested = Runner.from_cfg(
        Config(dict(config, load_from=str(tmp_path / 'run' / 'iter_2.pth'), work_dir=str(tmp_path / 'test')))
    )
    assert 0 <= tested.test()['mIoU'] <= 100


def test_no_gradient_runs_through_the_vit_with_the_heads_alone(scenes, coco, tmp_path, base):
    runner = Runner.from_cfg(recipe('eomt_rba_cityscapes_1024.py', scenes, coco, tmp_path / 'run', base))
    seen = []
    runner.model.decode_head.blocks[-1].register_forward_hook(lambda block, given, tokens: seen.append(tokens.requires_grad))
    runner.train()
    assert seen
    assert not any(seen)


def test_a_lora_run_goes_on_at_the_size_that_it_was_trained_at():
    before, ours = (Config.fromfile(ROOT / 'configs' / name) for name in ('eomt_lora_cityscapes.py', f'anomaly/{CONTINUED}'))
    assert ours.model.vit == before.model.vit and ours.tta_pipeline == before.tta_pipeline
    assert ours.test_dataloader.dataset == ours.val_dataloader.dataset == before.test_dataloader.dataset
    steps = ours.train_dataloader.dataset.pipeline
    assert [step for step in steps if step.type != 'PasteOutliers'] == before.train_dataloader.dataset.pipeline


def test_adapters_and_heads_of_a_lora_run_go_on_training(scenes, coco, tmp_path, lora):
    config = recipe(CONTINUED, scenes, coco, tmp_path / 'run', lora)
    config.optim_wrapper.optimizer.lr = 0.0
    runner = Runner.from_cfg(config)
    runner.train()
    before = torch.load(lora, weights_only=True)['state_dict']
    after = runner.model.state_dict()
    plain = {key.replace('.modules_to_save.default', '').replace('.default', ''): value for key, value in after.items()}
    adapters = [key for key in before if 'lora_' in key]
    assert adapters
    for key, value in before.items():
        name = key.replace('.modules_to_save.default', '').replace('.default', '')
        assert torch.equal(plain[name], value), key
