"""Every config builds what it says."""

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_ARCH
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import HOOKS, MODELS
from mmseg.utils import register_all_modules

from mmseg_eomt.adapters.inject import match_targets

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_hooks_build(name):
    register_all_modules()
    config = Config.fromfile(ROOT / 'configs' / name)
    with torch.device('meta'):  # sizes without values
        model = MODELS.build(config.model)
    hooks = {hook['type']: HOOKS.build(hook) for hook in config.custom_hooks}

    assert ('LoRAHook' in hooks) == ('lora' in name)
    assert tuple(model.data_preprocessor.size) == tuple(config.crop_size)
    assert model.decode_head.num_joint_blocks == model.backbone.num_joint_blocks
    if 'MaskAnnealingHook' in hooks:
        spans = hooks['MaskAnnealingHook'].start_iters or model.decode_head.blocks
        assert len(spans) == model.decode_head.num_joint_blocks
    else:
        assert 'no MaskAnnealingHook' in (ROOT / 'configs' / name).read_text()
    if 'LoRAHook' in hooks:
        matches = match_targets(model, hooks['LoRAHook'].make_config())
        assert len(matches['qkv']) == len(matches['proj']) == model.backbone.arch.num_layers


def test_the_ade20k_recipe_trains_and_evaluates_on_data_in_its_layout(tmp_path):
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(2):
            label = np.repeat(np.repeat(rng.integers(0, 151, (6, 8), np.uint8), 50, 0), 50, 1)  # 0 is not labelled
            cv2.imwrite(str(tmp_path / f'images/{split}/{i}.jpg'), cv2.merge([label] * 3))
            cv2.imwrite(str(tmp_path / f'annotations/{split}/{i}.png'), label)
    config = Config.fromfile(ROOT / 'configs' / 'eomt_dinov3-l_ade20k_512.py')
    arch = dict(SMALL_ARCH, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv')
    for part in ('backbone', 'decode_head'):
        config.model[part].update(arch=arch, init_cfg=None, num_joint_blocks=2)
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=1)
        loader.dataset.data_root = str(tmp_path)
    config.merge_from_dict({'train_cfg.max_iters': 1, 'work_dir': str(tmp_path / 'run'), 'experiment_name': 'ade20k'})

    runner = Runner.from_cfg(config)
    runner.train()

    assert runner.model.decode_head.num_classes == len(runner.val_dataloader.dataset.metainfo['classes']) == 150
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0


def test_the_cityscapes_recipes_have_the_stated_numbers():
    lora, full, large = (
        Config.fromfile(ROOT / 'configs' / f'eomt_{name}.py')
        for name in ('lora_cityscapes', 'cityscapes', 'lora_cityscapes_1024')
    )
    for config in (lora, full, large):
        assert config.model.backbone.arch == config.model.decode_head.arch == 'large'
        assert config.model.decode_head.num_classes == 19
        assert config.optim_wrapper.optimizer.lr == 1e-4
        assert config.train_dataloader.batch_size == 4
        assert config.train_cfg.max_iters == 50 * -(-2975 // 4)
        assert config.model.backbone.init_cfg.checkpoint.endswith('dinov2_vitl14_reg4_pretrain.pth')
    assert lora.model == full.model
    assert tuple(large.model.backbone.img_size) == (1024, 1024)
    assert tuple(large.train_dataloader.dataset.pipeline[3].crop_size) == (1024, 1024)
