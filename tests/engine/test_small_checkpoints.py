"""Checkpoints of what was trained: how small they are, what is in them, and what the summary says of it."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT, merged, reference
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model
from mmseg.registry import MODELS

from mmseg_eomt.adapters import inject, summarise
from mmseg_eomt.adapters.names import adapter_names
from mmseg_eomt.engine import LoRAHook


def test_only_what_was_trained_and_what_resuming_needs_is_kept(small_config, base, lora):
    plain, slim = (torch.load(path, weights_only=True) for path in (base, lora))
    frozen = [name for name in plain['state_dict'] if name.startswith('backbone.')]
    assert not [name for name in slim['state_dict'] if name in frozen]
    assert {name.split('.')[1] for name in slim['state_dict'] if '.lora_' not in name} == {
        *('query_embed', 'class_head', 'mask_head', 'upscale', 'attn_mask_probs')
    }
    assert {'optimizer', 'param_schedulers', 'message_hub', 'random_state', 'meta'} <= slim.keys()


def test_full_checkpoints_keep_everything(small_config, base):
    changes = {'custom_hooks.0.save': 'full', 'load_from': base, 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    assert saved['state_dict'].keys() == runner.model.state_dict().keys()
    assert saved['meta']['adapter']['complete']


def test_weights_that_no_file_brings_back_are_kept(small_config):
    """A frozen model of random weights is warned of; its checkpoint must still be a whole model."""
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1))
    runner.train()
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    assert saved['state_dict'].keys() == runner.model.state_dict().keys()
    tester = Runner.from_cfg(small_config(lora=True, load_from=f'{runner.work_dir}/iter_1.pth', name='test'))
    tester.test()
    expected = merged(runner.model)
    assert all(torch.equal(value, expected[name]) for name, value in tester.model.state_dict().items())


def test_a_release_file_in_init_cfg_is_found_again_and_another_is_refused(small_config, tmp_path):
    release = reference('dinov2_release_to_16.pt')['release_state_dict']
    torch.save(release, tmp_path / 'dinov2.pth')
    arch = dict(_delete_=True, embed_dims=48, num_layers=2, num_heads=3)
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint=str(tmp_path / 'dinov2.pth'))
    changes = {
        f'model.{part}.{key}': value
        for part in ('backbone', 'decode_head')
        for key, value in dict(arch=arch, num_joint_blocks=1, init_cfg=init_cfg).items()
    }
    runner = Runner.from_cfg(small_config(lora=True, max_iters=1, **changes))
    runner.train()
    expected, checkpoint = runner.model.state_dict(), f'{runner.work_dir}/iter_1.pth'
    assert not [name for name in torch.load(checkpoint, weights_only=True)['state_dict'] if 'mlp' in name]

    tester = Runner.from_cfg(small_config(lora=True, load_from=checkpoint, name='test', **changes))
    tester.test()
    in_weights = merged(runner.model)
    assert all(torch.equal(value, in_weights[name]) for name, value in tester.model.state_dict().items())
    other_size = {**changes, 'model.backbone.img_size': (96, 96)}  # its position embedding is another, and may be
    Runner.from_cfg(small_config(lora=True, load_from=checkpoint, name='other', **other_size)).test()

    (tmp_path / 'dinov2.pth').rename(tmp_path / 'moved.pth')
    with pytest.raises(FileNotFoundError, match=r'dinov2.pth.*It is the base .*model.vit.pretrained'):
        Runner.from_cfg(small_config(lora=True, load_from=checkpoint, name='moved', **changes)).test()
    moved = {**changes, 'model.decode_head.init_cfg.checkpoint': str(tmp_path / 'moved.pth')}
    moved['model.backbone.init_cfg.checkpoint'] = str(tmp_path / 'moved.pth')
    model = init_model(small_config(lora=True, **moved), checkpoint, device='cpu')  # it takes the backbone's init_cfg away
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    (tmp_path / 'moved.pth').rename(tmp_path / 'dinov2.pth')

    release['blocks.0.mlp.fc1.weight'] = release['blocks.0.mlp.fc1.weight'] * 1.01
    torch.save(release, tmp_path / 'dinov2.pth')
    with pytest.raises(ValueError, match=r'another base: 1 of \d+ .*backbone.blocks.0.mlp.fc1.weight'):
        Runner.from_cfg(small_config(lora=True, load_from=checkpoint, name='last', **changes)).test()


def test_a_base_from_init_cfg_and_load_from_is_found_again(small_config, base, tmp_path):
    """Both at once: load_from goes over init_cfg's, as in training."""
    other = torch.load(base, weights_only=True)
    for value in other['state_dict'].values():
        if value.is_floating_point():
            value.mul_(1.1)
    torch.save(other, tmp_path / 'other.pth')
    changes = {'model.init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth')), 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, load_from=base, **changes))
    runner.train()
    saved = f'{runner.work_dir}/iter_1.pth'
    for options in (changes, {}):
        tester = Runner.from_cfg(small_config(lora=True, load_from=saved, name='test', **options))
        tester.test()
        weights = merged(runner.model)
        assert all(torch.equal(value, weights[name]) for name, value in tester.model.state_dict().items())


def test_a_backbone_of_the_toolbox_is_found_again_by_init_model(small_config, base, tmp_path):
    resnet = dict(_delete_=True, type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
    head = {'model.decode_head.in_channels': 512, 'model.decode_head.patch_size': 32}
    weights = MODELS.build({key: value for key, value in resnet.items() if key != '_delete_'}).state_dict()
    torch.save(weights, tmp_path / 'resnet.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    config = small_config(lora=True, max_iters=1, **{'model.backbone': dict(resnet, init_cfg=init_cfg), **head})
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner = Runner.from_cfg(config)
    runner.train()
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)['state_dict']
    assert 'backbone.layer1.0.conv1.weight' not in saved
    model = init_model(config, f'{runner.work_dir}/iter_1.pth', device='cpu')
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in runner.model.state_dict().items())


def test_the_adapters_of_a_vit_l_take_less_than_ten_megabytes():
    config = Config.fromfile(ROOT / 'configs' / 'eomt_lora_cityscapes.py')
    with torch.device('meta'):
        model = MODELS.build(config.model)
        hook = LoRAHook(**{key: value for key, value in config.custom_hooks[0].items() if key != 'type'})
        matches = inject(model, hook.make_config(), hook.trainable_modules)
    size = sum(4 * model.get_parameter(name).numel() for name in adapter_names(model))
    assert size == 9_437_184 < 10e6
    assert 'adapters 9.4 MB, optimizer state 112.4 MB' in summarise(model, matches)


def test_the_estimated_sizes_are_those_of_the_file(small_config, base, capfd):
    runner = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=1, **{'model.decode_head.num_queries': 12}))
    runner.train()
    log = ''.join(capfd.readouterr())
    line = next(line for line in log.splitlines() if 'estimated sizes' in line)
    saved = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)
    weights = sum(v.numel() * v.element_size() for v in saved['state_dict'].values())
    moments = [v for s in saved['optimizer']['state'].values() for k, v in s.items() if k != 'step']
    optimizer = sum(v.numel() * v.element_size() for v in moments)
    assert f'optimizer state {_shown(optimizer)}' in line
    assert f'of which weights {_shown(weights)}' in line


def _shown(size: int) -> str:
    return f'{size / 1e6:,.1f} MB' if size >= 1e5 else f'{size / 1e3:,.1f} kB'


def test_the_table_is_in_the_work_directory_in_full(small_config, base):
    runner = Runner.from_cfg(small_config(lora=True, load_from=base, max_iters=1))
    runner.train()
    table = (Path(runner.work_dir) / 'adapters.txt').read_text()
    assert 'of all parameters train' in table
    for name, parameter in runner.model.named_parameters():
        assert f'  {name}  {tuple(parameter.shape)}' in table
    for layer in ('backbone.blocks.0.attn.qkv', 'decode_head.blocks.1.attn.qkv'):
        assert f'  {layer}\n' in table.split('Layers that qkv matched')[1]
