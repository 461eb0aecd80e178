"""Every config builds what it says."""

import re

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL_ARCH
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmseg.registry import HOOKS, MODELS, TRANSFORMS
from mmseg.utils import register_all_modules

from mmseg_eomt.adapters.blocks import block_range
from mmseg_eomt.adapters.inject import match_targets
from mmseg_eomt.models.segmentor import share_vit

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('name', CONFIGS)
def test_model_and_hooks_build(name):
    register_all_modules()
    config = Config.fromfile(ROOT / 'configs' / name)
    with torch.device('meta'):  # sizes without values
        model = MODELS.build(config.model)
    hooks = {hook['type']: HOOKS.build(hook) for hook in config.custom_hooks}

    assert ('LoRAHook' in hooks) == bool(re.search('lora|frozen|pmt|rein', name))
    assert tuple(model.data_preprocessor.size) == tuple(config.crop_size)
    assert getattr(model.decode_head, 'num_joint_blocks', 0) == model.backbone.num_joint_blocks
    if 'MaskAnnealingHook' in hooks:
        spans = hooks['MaskAnnealingHook'].start_iters or model.decode_head.blocks
        assert len(spans) == len(model.decode_head.blocks)
    else:
        assert 'no MaskAnnealingHook' in (ROOT / 'configs' / name).read_text()
    if 'lora' in name:
        matches = match_targets(model, hooks['LoRAHook'].config_for(model))
        blocks, _ = block_range(model, hooks['LoRAHook'].blocks or (0, -1))
        assert len(matches['qkv']) == len(matches['proj']) == len(blocks)


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
    config.param_scheduler[0].warmup_steps = (0, 0)
    config.merge_from_dict({'train_cfg.max_iters': 1, 'work_dir': str(tmp_path / 'run'), 'experiment_name': 'ade20k'})

    runner = Runner.from_cfg(config)
    runner.train()

    assert runner.model.decode_head.num_classes == len(runner.val_dataloader.dataset.metainfo['classes']) == 150
    assert runner.message_hub.get_scalar('val/mIoU').current() >= 0


OTHERS = ('tiny', 'demo', 'robust', 'rein', 'frozen', 'pmt')  # whose numbers are not EoMT's
RECIPES = [name for name in CONFIGS if not any(word in name for word in OTHERS)]
VITS = {
    '2-s': ('small', 3, 'dinov2_vits14_reg4'),
    '2-b': ('base', 3, 'dinov2_vitb14_reg4'),
    '2-l': ('large', 4, 'dinov2_vitl14_reg4'),
    '3-s': ('dinov3_small', 3, 'dinov3-vits16'),
    '3-b': ('dinov3_base', 3, 'dinov3-vitb16'),
    '3-l': ('dinov3_large', 4, 'dinov3-vitl16'),
}
STEPS = {'cityscapes': 107 * -(-2975 // 16), 'ade20k': 31 * -(-20210 // 16)}  # epochs times batches of 16


def test_every_vit_has_its_recipe_for_every_dataset_with_and_without_lora():
    assert len(RECIPES) == len(VITS) * 3 * 2


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_has_the_published_numbers(name):
    config = Config.fromfile(ROOT / 'configs' / name)
    model = ConfigDict(share_vit(config.model))
    family, size = re.search(r'dinov(\d)-(\w)_', name).groups() if 'dinov' in name else ('2', 'l')
    arch, joint, weights = VITS[f'{family}-{size}']
    data = 'ade20k' if 'ade20k' in name else 'cityscapes'
    side = int((re.findall(r'_(\d+)\.py', name) or ['640'])[0])

    for part in (model.backbone, model.decode_head):
        assert (part.arch, part.num_joint_blocks) == (arch, joint)
        assert weights in part.init_cfg.checkpoint
    assert model.decode_head.num_classes == (150 if data == 'ade20k' else 19)
    for size in (
        model.backbone.img_size,
        model.data_preprocessor.size,
        model.test_cfg.crop_size,
        model.test_cfg.stride,
        next(step.crop_size for step in config.train_dataloader.dataset.pipeline if step.type == 'EoMTAugment'),
    ):
        assert tuple(size) == (side, side)

    optim = config.optim_wrapper
    assert config.train_dataloader.batch_size * optim.accumulative_counts == 16
    assert config.train_cfg.max_iters == STEPS[data] * optim.accumulative_counts
    assert config.auto_scale_lr.base_batch_size == config.train_dataloader.batch_size
    assert optim.optimizer == dict(type='AdamW', lr=1e-4 if family == '2' else 2e-4, weight_decay=0.05)
    assert optim.clip_grad.max_norm == 0.01
    assert optim.paramwise_cfg.layer_decay == (1.0 if 'lora' in name else 0.8)
    assert optim.paramwise_cfg.get('decay_joint_blocks', True) == (family == '2')
    (schedule,) = config.param_scheduler
    assert schedule.type == 'TwoWarmupsPolyLR'
    assert tuple(schedule.warmup_steps) == ((500, 1000) if family == '2' else (2000, 3000))


def test_rein_differs_from_its_base_in_the_classes_and_what_trains():
    rein, base = (Config.fromfile(ROOT / 'configs' / f'eomt_{name}cityscapes.py') for name in ('rein_', ''))
    hook = rein.custom_hooks.pop(0)
    rein.model.backbone.type, rein.model.decode_head.type = 'EoMTViT', 'EoMTHead'
    assert rein.to_dict() == base.to_dict()
    assert hook.target_modules == []
    assert {*hook.trainable_modules} > {'backbone.rein', 'decode_head.joint_rein'}


@pytest.mark.parametrize(
    ('option', 'value', 'part', 'field'),
    [
        ('arch', 'vit_large', ('backbone', 'decode_head'), 'arch'),
        ('pretrained', 'copy.pth', ('backbone', 'decode_head'), 'init_cfg'),
        ('img_size', (512, 1024), ('backbone', 'data_preprocessor', 'test_cfg'), ('img_size', 'size', 'crop_size')),
    ],
)
def test_one_option_changes_the_vit_wherever_it_counts(option, value, part, field):
    config = Config.fromfile(ROOT / 'configs' / 'eomt_lora_dinov2-b_ade20k_512.py')
    config.merge_from_dict({f'model.vit.{option}': value})
    model = share_vit(config.model)
    fields = field if isinstance(field, tuple) else (field,) * len(part)
    expected = dict(type='Pretrained', checkpoint=value) if option == 'pretrained' else value
    assert [model[name][key] for name, key in zip(part, fields)] == [expected] * len(part)


@pytest.mark.parametrize('name', [name for name in RECIPES if 'lora' in name])
def test_the_lora_twin_is_the_same_but_for_adapters_and_rates(name):
    assert len((ROOT / 'configs' / name).read_text().splitlines()) <= 5
    lora, full = (Config.fromfile(ROOT / 'configs' / twin) for twin in (name, name.replace('lora_', '')))
    lora.custom_hooks = [hook for hook in lora.custom_hooks if hook.type != 'LoRAHook']
    lora.pop('lora')  # the variable that says what differs
    lora.optim_wrapper.paramwise_cfg.layer_decay = full.optim_wrapper.paramwise_cfg.layer_decay
    assert lora.to_dict() == full.to_dict()


def test_the_published_pipeline_scales_pads_and_crops(tmp_path):
    """An image of 2:1 is scaled by its longer side, so that a scale of 1 fills the crop's width and half of its height."""
    register_all_modules()
    config = Config.fromfile(ROOT / 'configs' / 'eomt_cityscapes_1024.py')
    steps = config.train_dataloader.dataset.pipeline[2:-1]
    cv2.imwrite(str(tmp_path / 'image.png'), np.full((512, 1024, 3), 200, np.uint8))
    heights = []
    for seed in range(40):
        np.random.seed(seed)
        results = dict(img=cv2.imread(str(tmp_path / 'image.png')), gt_seg_map=np.ones((512, 1024), np.uint8))
        results.update(img_shape=(512, 1024), seg_fields=['gt_seg_map'])
        for step in steps:
            results = TRANSFORMS.build(step)(results)
        assert results['img'].shape == (1024, 1024, 3)
        labelled = results['gt_seg_map'] == 1
        assert set(np.unique(results['gt_seg_map'])) <= {1, 255}
        assert (results['img'][~labelled] == 0).all()  # black, before normalisation, as published
        heights.append(labelled.any(1).sum())
    assert 256 <= min(heights) < 330
    assert 900 < max(heights) <= 1024
