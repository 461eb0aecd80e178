"""A folder that lacks what was trained, or is not as PEFT writes it, is refused, and leaves no trace in the model."""

import copy
import os
import pickle

import peft
import pytest
import torch
from folders import CONFIG, WEIGHTS, reconfigure, rewrite, saved, small
from mmseg.apis import init_model
from safetensors.torch import load_file
from torch import nn

from mmseg_eomt.adapters import inject, load_adapter, lora_config, save_adapter
from mmseg_eomt.adapters.peft_folder import read_folder
from mmseg_eomt.inference import load_model

LOST = {
    'every B': lambda name: 'lora_B' in name,
    'a pair': lambda name: 'blocks.1.attn.qkv' in name,
    'a module': lambda name: 'class_head' in name,
    'magnitudes': lambda name: 'magnitude' in name,
}


@pytest.mark.parametrize('lost', LOST)
@pytest.mark.parametrize('door', ['init_model', 'load_model', 'load_adapter', 'into an adapted model', 'checkpoint'])
def test_an_adapter_that_lacks_tensors_is_refused(small_config, base, tmp_path, lost, door):
    model = init_model(small_config(), base, device='cpu')
    head = ['decode_head.class_head']
    config = lora_config(4, 8, 0.0, ['qkv'], use_dora=lost == 'magnitudes')
    inject(model, config, head)
    save_adapter(model, tmp_path / 'a')
    rewrite(tmp_path / 'a', lambda weights: [weights.pop(name) for name in list(weights) if LOST[lost](name)])
    plain = small_config(name='plain', **{'model.init_cfg': dict(type='Pretrained', checkpoint=base)})
    with pytest.raises(RuntimeError, match=r'a(\.pth)? does not fit the model in \d+ weights \(\d+ missing') as told:
        if door == 'init_model':
            init_model(plain, str(tmp_path / 'a'), device='cpu')
        elif door == 'load_model':
            path = tmp_path / 'plain.py'
            plain.dump(path)
            load_model(path, str(tmp_path / 'a'), device='cpu')
        elif door == 'load_adapter':
            load_adapter(init_model(small_config(), base, device='cpu'), tmp_path / 'a')
        elif door == 'into an adapted model':
            load_adapter(model.requires_grad_(False), tmp_path / 'a')
        else:
            checkpoint = dict(meta=read_folder(tmp_path / 'a')['meta'], state_dict=model.state_dict())
            checkpoint['meta']['adapter'].update(complete=True, trainable_modules=head)
            checkpoint['state_dict'] = {n: v for n, v in model.state_dict().items() if not LOST[lost](n)}
            torch.save(checkpoint, tmp_path / 'a.pth')
            init_model(plain, str(tmp_path / 'a.pth'), device='cpu')
    assert str(tmp_path / 'a') in str(told.value)


def fingerprint(model: nn.Module) -> tuple:
    modules = [
        (name, type(module), module.training, len(module._forward_hooks), len(module._load_state_dict_pre_hooks))
        for name, module in model.named_modules()
    ]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    adapters = [str(config) for config in getattr(model, 'peft_config', {}).values()]
    active = [getattr(module, 'active_adapters', None) for module in model.modules()]
    return modules, parameters, adapters, hasattr(model, 'peft_config'), active


WRONG = {
    'no B': lambda folder: rewrite(folder, lambda w: w.pop('base_model.model.0.lora_B.weight')),
    'no module': lambda folder: rewrite(folder, lambda w: w.pop('base_model.model.2.weight')),
    'more': lambda folder: rewrite(folder, lambda w: w.update({'base_model.model.1.extra': torch.ones(2)})),
    'the base': lambda folder: rewrite(
        folder, lambda w: w.update({'base_model.model.0.base_layer.weight': torch.ones(8, 8)})
    ),
    'another rank': lambda folder: reconfigure(folder, r=3),
    'another kind': lambda folder: rewrite(
        folder, lambda w: w.update({'base_model.model.0.lora_B.weight': torch.ones(8, 2, dtype=torch.int64)})
    ),
    'another model': lambda folder: reconfigure(folder, target_modules=['query']),
    'another start': lambda folder: reconfigure(folder, init_lora_weights='bogus'),
    'olora': lambda folder: reconfigure(folder, init_lora_weights='olora', r=3),
}


@pytest.mark.parametrize('present', [False, True], ids=['plain', 'beside another'])
@pytest.mark.parametrize('wrong', WRONG)
def test_a_refused_adapter_leaves_the_model_as_it_was(tmp_path, wrong, present):
    saved(tmp_path / 'right')
    saved(tmp_path / 'wrong', alpha=16)
    WRONG[wrong](tmp_path / 'wrong')
    model, x = small(), torch.randn(4, 8)
    if present:
        load_adapter(model, tmp_path / 'right', 'right')
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    known = fingerprint(model)
    with pytest.raises((RuntimeError, ValueError), match=r'wrong') as told:
        load_adapter(model, tmp_path / 'wrong', 'other')
    assert all(': checkpoint ' in line for line in str(told.value).splitlines()[1:]), 'a sentence, and the weights below it'
    assert fingerprint(model) == known
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(model(x), expected)
    load_adapter(model, tmp_path / 'right', 'again')  # and it can be used on
    assert torch.equal(model(x), saved(tmp_path / 'right')(x))


@pytest.mark.parametrize(
    ('value', 'told'),
    [
        (torch.full((8, 2), float('nan')), 'holds 16 NaN'),
        (torch.full((8, 2), float('inf')), '16 Inf'),
        (torch.ones(8, 2, dtype=torch.int32), r'is of int32, and float32 belongs there'),
        (torch.ones(8, 2, dtype=torch.bool), r'is of bool, and float32 belongs there'),
        (torch.ones(8, 2, dtype=torch.complex64), r'is of complex64, and float32 belongs there'),
        (torch.eye(8)[:, :2].to_sparse(), 'is a sparse_coo tensor'),
        ('text', 'is a str, and a tensor belongs there'),
        (None, 'is a NoneType, and a tensor belongs there'),
    ],
)
def test_what_is_no_tensor_of_numbers_is_named(tmp_path, value, told):
    saved(tmp_path / 'a')
    weights = load_file(tmp_path / 'a' / WEIGHTS)
    weights['base_model.model.0.lora_B.weight'] = value
    (tmp_path / 'a' / WEIGHTS).unlink()
    torch.save(weights, tmp_path / 'a' / 'adapter_model.bin')
    with pytest.raises(ValueError, match=rf'a.*0\.lora_B(\.default)?\.weight.*{told}') as error:
        load_adapter(small(), tmp_path / 'a')
    assert str(tmp_path / 'a') in str(error.value)


def test_weights_of_half_precision_load(tmp_path):
    saved(tmp_path / 'a')
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rewrite(tmp_path / 'a', lambda weights, d=dtype: weights.update({n: v.to(d) for n, v in weights.items()}))
        model = small()
        load_adapter(model, tmp_path / 'a')
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


class Code:
    def __reduce__(self):
        return os.system, ('echo executed',)


def test_a_bin_file_that_asks_for_code_is_refused_as_every_other_file(tmp_path, capfd):
    saved(tmp_path / 'a')
    (tmp_path / 'a' / WEIGHTS).unlink()
    path = tmp_path / 'a' / 'adapter_model.bin'
    for content in (Code(), {'base_model.model.0.lora_B.weight': Code()}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r'adapter_model.bin asks for \w+.system, which is code') as told:
            load_adapter(small(), tmp_path / 'a')
        assert 'weights_only' not in str(told.value)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r'adapter_model.bin'):
        load_adapter(small(), tmp_path / 'a')
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match=r'adapter_model.bin holds a list'):
        load_adapter(small(), tmp_path / 'a')
    assert 'executed' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        (dict(peft_type='NOPE'), r"method 'NOPE', which PEFT [\d.]+ does not know"),
        (dict(peft_type=5), r'names no method in peft_type, got 5'),
        (dict(r='8'), r"r='8' .* PEFT takes int"),
        (dict(r=10**9), 'has rank 1000000000'),
        (dict(r=-2), '.'),
        (dict(rank_pattern={'0': 10**9}), 'has rank 1000000000'),
        (dict(lora_alpha=None), r'lora_alpha=None .* PEFT takes int'),
        (dict(lora_alpha=float('nan')), 'lora_alpha=nan'),
        (dict(use_dora='no'), r"use_dora='no' .* PEFT takes bool"),
        (dict(use_rslora='false'), r"use_rslora='false' .* PEFT takes bool"),
        (dict(target_modules=7), r'target_modules=7'),
        (dict(modules_to_save='2'), r"'2', expected a list of names"),
        (dict(bias='every'), '.'),
    ],
)
@pytest.mark.parametrize('door', ['load_adapter', 'init_model'])
def test_a_config_with_wrong_fields_is_refused_with_the_folders_name(small_config, base, tmp_path, fields, told, door):
    folder = tmp_path / 'a'
    if door == 'load_adapter':
        saved(folder)
    else:
        model = init_model(small_config(), base, device='cpu')
        inject(model, lora_config(4, 8, 0.0, ['qkv']))
        save_adapter(model, folder)
    reconfigure(folder, **fields)
    with pytest.raises((ValueError, RuntimeError), match=f'/a.*{told}') as error:
        if door == 'load_adapter':
            load_adapter(small(), folder)
        else:
            config = small_config(**{'model.init_cfg': dict(type='Pretrained', checkpoint=base)})
            init_model(config, str(folder), device='cpu')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('content', 'told'),
    [('[1]', 'holds a list'), ('{"r": ', 'is no JSON'), ('', 'is no JSON'), ('null', 'holds a NoneType')],
)
def test_a_config_that_is_none_is_refused_with_its_name(tmp_path, content, told):
    saved(tmp_path / 'a')
    (tmp_path / 'a' / CONFIG).write_text(content)
    with pytest.raises(ValueError, match=rf'adapter_config.json {told}'):
        load_adapter(small(), tmp_path / 'a')


def test_what_peft_loads_of_its_own_folders_loads_here(tmp_path):
    """Fields that are as PEFT writes them pass, whatever their hints in PEFT say."""
    for fields in (dict(lora_alpha=4.5), dict(init_lora_weights='gaussian'), dict(rank_pattern={'0': 3}), dict(bias='all')):
        theirs = peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=['0'], modules_to_save=['2'], **fields))
        theirs.save_pretrained(tmp_path / 'theirs')
        model = small()
        load_adapter(model, tmp_path / 'theirs')
        assert torch.equal(model(torch.ones(1, 8)), theirs.eval()(torch.ones(1, 8)))
