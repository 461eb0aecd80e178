"""A checkpoint notes the arch that it was trained with, and is not read as one of another."""

import re

import pytest
import torch
from conftest import SMALL_ARCH, run_tool
from mmengine.runner import Runner, load_checkpoint
from mmseg.apis import init_model

from mmseg_eomt.adapters import load_adapter
from mmseg_eomt.models.arch import ARCHS, get_arch
from mmseg_eomt.weights.arch import ARCH_NOTE as KEY
from mmseg_eomt.weights.arch import check_noted

HEADS = dict(SMALL_ARCH, num_heads=4)
OTHERS = {
    'num_heads': HEADS,
    'mlp': dict(SMALL_ARCH, mlp='quick_gelu'),
    'norm_eps': dict(SMALL_ARCH, norm_eps=1e-5),
    'qkv_bias': dict(SMALL_ARCH, qkv_bias='qv'),
}


def other_arch(arch: dict) -> dict:
    return {f'model.{part}.arch': dict(_delete_=True, **arch) for part in ('backbone', 'decode_head')}


def without_note(path: str, out) -> str:
    """The checkpoint as version 0.1.0 wrote it."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint['meta'][KEY]
    torch.save(checkpoint, out)
    return str(out)


@pytest.mark.parametrize('hooks', [True, False], ids=['hooks', 'no hooks'])
@pytest.mark.parametrize('field', OTHERS)
def test_another_arch_of_the_same_weights_is_not_evaluated(small_config, base, field, hooks):
    config = small_config(load_from=base, **other_arch(OTHERS[field]))
    if not hooks:
        config.custom_hooks = []
    own, given = (repr(getattr(get_arch(arch), field)) for arch in (OTHERS[field], SMALL_ARCH))
    with pytest.raises(
        ValueError, match=re.escape(f'{base} has {field}={given}, but arch asks for {field}={own}: set arch')
    ):
        Runner.from_cfg(config).test()


def test_a_run_is_not_resumed_with_another_arch(small_config):
    config = small_config(max_iters=1)
    config.custom_hooks = []
    Runner.from_cfg(config).train()
    with pytest.raises(ValueError, match=r'iter_1.pth has num_heads=2, but arch asks for num_heads=4'):
        Runner.from_cfg(small_config(max_iters=2, resume=True, **other_arch(HEADS))).train()


@pytest.mark.parametrize('way', ['load_from', 'init_cfg', 'model.init_cfg', 'lora'])
def test_training_does_not_start_from_a_checkpoint_of_another_arch(small_config, base, way):
    pretrained = dict(type='Pretrained', checkpoint=base)
    changes = dict(
        load_from=dict(load_from=base),
        init_cfg={f'model.{part}.init_cfg': dict(_delete_=True, **pretrained) for part in ('backbone', 'decode_head')},
        lora=dict(lora=True, load_from=base),
    ).get(way, {way: pretrained})
    with pytest.raises(ValueError, match=r'iter_1.pth has num_heads=2, but arch asks for num_heads=4'):
        Runner.from_cfg(small_config(**changes, **other_arch(HEADS))).train()


def test_init_model_and_load_checkpoint_refuse_another_arch(small_config, base, lora):
    config = small_config(**other_arch(HEADS))
    for checkpoint in (base, lora):
        with pytest.raises(ValueError, match=r'iter_\d.pth has num_heads=2, but arch asks for num_heads=4'):
            init_model(config.copy(), checkpoint, device='cpu')
    with pytest.raises(ValueError, match=r'iter_1.pth has num_heads=2'):
        load_checkpoint(init_model(config, device='cpu'), base)


def test_adapters_are_not_put_on_another_arch(small_config, base, lora):
    adapters = lora.replace('iter_2.pth', 'adapters/iter_2')
    config = small_config(**other_arch(HEADS))
    with pytest.raises(ValueError, match=r'adapters/iter_2 has num_heads=2, but arch asks for num_heads=4'):
        init_model(config.copy(), adapters, device='cpu')
    model = init_model(config, device='cpu')
    with pytest.raises(ValueError, match=r'adapters/iter_2 has num_heads=2, but arch asks for num_heads=4'):
        load_adapter(model, adapters)
    with pytest.raises(ValueError, match=r'iter_\d.pth has num_heads=2, but arch asks for num_heads=4'):
        Runner.from_cfg(small_config(lora=True, load_from=lora, **other_arch(HEADS))).test()


def test_the_base_of_adapters_is_not_of_another_arch(small_config, base, lora, tmp_path):
    checkpoint = without_note(lora, tmp_path / 'lora.pth')
    with pytest.raises(ValueError, match=r'base/iter_1.pth has num_heads=2, but arch asks for num_heads=4'):
        init_model(small_config(**other_arch(HEADS)), checkpoint, device='cpu')


def test_a_checkpoint_without_a_note_loads_as_before(small_config, base, tmp_path):
    expected = Runner.from_cfg(small_config(load_from=base)).test()
    config = small_config(load_from=without_note(base, tmp_path / 'old.pth'), name='old')
    assert Runner.from_cfg(config).test()['mIoU'] == expected['mIoU']
    Runner.from_cfg(small_config(load_from=without_note(base, tmp_path / 'old.pth'), name='x', **other_arch(HEADS))).test()


def test_what_only_matters_in_training_may_differ(small_config, base):
    expected = Runner.from_cfg(small_config(load_from=base)).test()
    arch = dict(SMALL_ARCH, layer_scale_init=1e-3, rope_rescale=2.0)
    assert Runner.from_cfg(small_config(load_from=base, name='other', **other_arch(arch))).test() == expected


def test_a_named_arch_is_the_dict_of_its_fields():
    for name, arch in ARCHS.items():
        check_noted(dict(vars(arch)), get_arch(name), 'file')
        check_noted(dict(vars(arch)), get_arch(dict(vars(arch))), 'file')
    with pytest.raises(ValueError, match=r"rope_theta=100.0, but arch asks for norm_eps=1e-06, .*: arch='dinov3_base' fits"):
        check_noted(dict(vars(ARCHS['dinov3_base'])), ARCHS['vit_base'], 'file')


@pytest.mark.parametrize('note', ['', 'large', [1, 2], 3])
def test_a_note_that_is_none_is_refused(note):
    with pytest.raises(ValueError, match=r'^file notes .* as its arch, and not the fields of one'):
        check_noted(note, ARCHS['base'], 'file')


@pytest.mark.slow
def test_the_note_goes_along_with_merged_exported_and_converted_checkpoints(small_config, config_file, base, lora, tmp_path):
    config = config_file(small_config(lora=True))
    run_tool('tools/adapter.py', 'merge', config, lora, tmp_path / 'merged.pth')
    run_tool('tools/adapter.py', 'export', config, lora, tmp_path / 'exported')
    run_tool('tools/convert_checkpoint.py', base, tmp_path / 'converted.pth', '--to', 'mmseg')
    for name in ('merged.pth', 'exported', 'converted.pth'):
        with pytest.raises(ValueError, match=f'{name} has num_heads=2, but arch asks for num_heads=4'):
            init_model(small_config(**other_arch(HEADS)), str(tmp_path / name), device='cpu')
    four = config_file(small_config(name='four', **other_arch(HEADS)))
    done = run_tool(
        'tools/convert_checkpoint.py', base, tmp_path / 'hf', '--to', 'hf', '--config', four, check=False
    ).stdout.splitlines()
    assert 'has num_heads=2, but arch asks for num_heads=4' in done[-1]
    assert not (tmp_path / 'hf').exists()
