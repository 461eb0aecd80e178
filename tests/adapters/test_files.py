"""Adapters in PEFT's own format: what we write PEFT reads, and what PEFT writes we read."""

import json
import warnings
from collections import OrderedDict
from pathlib import Path

import peft
import pytest
import torch
from mmengine.runner import Runner, load_checkpoint
from mmseg.apis import init_model
from mmseg.registry import MODELS
from safetensors import safe_open
from safetensors.torch import load_file

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, peft_config, save_adapter, set_adapter
from mmseg_eomt.adapters.names import adapter_names

NEW_PARTS = ['decode_head.query_embed', 'decode_head.class_head', 'decode_head.mask_head', 'decode_head.upscale']
EXCLUDED = ['patch_embed.proj']
META = [dict(img_shape=(64, 64), ori_shape=(64, 64))]


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64)


@pytest.fixture
def segmentor(small_config, base):
    """Build the plain segmentor with the base's weights."""

    def build() -> torch.nn.Module:
        model = MODELS.build(small_config().model)
        load_checkpoint(model, base)
        return model.eval()

    return build


@torch.no_grad()
def scores(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    return model.eval().encode_decode(image, META)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """Whatever trains has moved."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return model


def folder_of(lora: str) -> Path:
    return Path(lora).parent / 'adapters' / 'iter_2'


def test_peft_loads_our_folder_and_predicts_as_we_do_without_our_code(small_config, lora, segmentor, image):
    ours = init_model(small_config(lora=True), lora, device='cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # such as PEFT's of missing keys
        theirs = peft.PeftModel.from_pretrained(segmentor(), folder_of(lora))
    assert torch.equal(scores(theirs.base_model.model, image), scores(ours, image))
    assert not torch.equal(scores(segmentor(), image), scores(ours, image))


def test_the_folder_has_what_pefts_own_has_and_says_on_which_base_it_was_trained(lora, base):
    folder = folder_of(lora)
    config = json.loads((folder / 'adapter_config.json').read_text())
    assert (config['peft_type'], config['r'], config['lora_alpha']) == ('LORA', 16, 32)
    assert config['modules_to_save'] == NEW_PARTS
    names = load_file(folder / 'adapter_model.safetensors').keys()
    assert all(name.startswith('base_model.model.') and '.default' not in name for name in names)
    assert sum('.lora_' in name for name in names) == 16
    with safe_open(folder / 'adapter_model.safetensors', 'pt') as file:
        header = json.loads(file.metadata()['mmseg_eomt'])
    assert header['base']['load_from'] == base
    assert len(header['base']['fingerprints']) > 50
    assert header['iter'] == 2


def plain_peft(model: torch.nn.Module, folder: Path, **changes) -> peft.PeftModel:
    """An adapter that PEFT alone has made and saved."""
    fields = dict(r=4, target_modules=['qkv', 'proj'], exclude_modules=EXCLUDED, modules_to_save=NEW_PARTS)
    adapted = trained(peft.get_peft_model(model, peft.LoraConfig(**{**fields, **changes})))
    adapted.save_pretrained(folder)
    return adapted


@pytest.mark.parametrize('way', ['load_adapter', 'init_model', 'into an injected model', 'runner'])
def test_an_adapter_that_peft_has_trained_loads_into_ours(small_config, base, segmentor, image, tmp_path, way):
    model = segmentor()
    plain_peft(model, tmp_path / 'theirs')
    expected = scores(model, image)
    if way == 'load_adapter':
        ours = segmentor()
        load_adapter(ours, tmp_path / 'theirs')
    elif way == 'init_model':
        config = small_config(lora=True, **{'model.init_cfg': dict(type='Pretrained', checkpoint=base)})
        ours = init_model(config, str(tmp_path / 'theirs'), device='cpu')
    elif way == 'into an injected model':
        ours = segmentor()
        inject(ours, lora_config(4, 8, 0.0, ['qkv', 'proj'], EXCLUDED), NEW_PARTS)
        load_adapter(ours, tmp_path / 'theirs')
    else:
        changes = {'custom_hooks.0.r': 4, 'custom_hooks.0.lora_alpha': 8}
        changes['model.init_cfg'] = dict(type='Pretrained', checkpoint=base)
        runner = Runner.from_cfg(small_config(lora=True, load_from=str(tmp_path / 'theirs'), **changes))
        runner.test()
        ours = runner.model
    # the runner has merged it
    assert torch.allclose(scores(ours, image), expected, rtol=0, atol=1e-5 if way == 'runner' else 0)


def test_adapters_are_not_put_on_another_base(lora, segmentor):
    model = segmentor()
    with torch.no_grad():
        model.backbone.blocks[0].norm1.weight += 1
    with pytest.raises(ValueError, match=r'another base: 1 of \d+ weights differ \(backbone.blocks.0.norm1.weight'):
        load_adapter(model, folder_of(lora))


def test_two_adapters_are_switched_by_name_with_the_heads_they_were_trained_with(segmentor, image, tmp_path):
    expected = {}
    for name in ('day', 'dusk'):
        model = segmentor()
        inject(model, lora_config(4, 8, 0.0, ['qkv', 'proj'], EXCLUDED), NEW_PARTS)
        save_adapter(trained(model), tmp_path / name)
        expected[name] = scores(model, image)
    both = segmentor()
    plain = scores(both, image)
    for name in ('day', 'dusk'):
        load_adapter(both, tmp_path / name, name)
        assert torch.equal(scores(both, image), expected[name])  # the one that was loaded last is in use
        assert not any(module.training for module in both.modules())
    for name in ('dusk', 'day', 'dusk'):
        set_adapter(both, name)
        assert torch.equal(scores(both, image), expected[name])
    assert not torch.equal(expected['day'], expected['dusk']) and not torch.equal(expected['day'], plain)
    with pytest.raises(ValueError, match=r"no adapter 'night', but \['day', 'dusk'\]"):
        set_adapter(both, 'night')
    with pytest.raises(ValueError, match="has an adapter 'day' already"):
        load_adapter(both, tmp_path / 'day', 'day')


def test_a_weighted_merge_adds_each_change_by_its_factor(segmentor, image, tmp_path):
    base = segmentor().state_dict()
    changes = {}
    for name, targets in (('day', ['qkv']), ('dusk', ['qkv', 'proj'])):
        model = segmentor()
        inject(model, lora_config(4, 8, 0.0, targets, EXCLUDED), NEW_PARTS)
        save_adapter(trained(model), tmp_path / name)
        merge(model)
        changes[name] = {key: value - base[key] for key, value in model.state_dict().items()}
    both = segmentor()
    for name in ('day', 'dusk'):
        load_adapter(both, tmp_path / name, name)
    merge(both, dict(day=0.25, dusk=0.75))
    mixed = both.state_dict()
    assert mixed.keys() == base.keys()
    for key, value in mixed.items():
        if not value.is_floating_point():
            continue
        expected = base[key] + 0.25 * changes['day'][key] + 0.75 * changes['dusk'][key]
        assert torch.allclose(value, expected, atol=1e-5), key
    assert not adapter_names(both)


def test_methods_whose_changes_do_not_add_up_are_not_weighted(segmentor, tmp_path):
    model = segmentor()
    inject(model, lora_config(4, 8, 0.0, ['qkv'], use_dora=True), NEW_PARTS)
    with pytest.raises(ValueError, match=r'were trained in place.*load_adapter'):
        merge(model, dict(default=0.5))
    save_adapter(model, tmp_path / 'dora')
    model = segmentor()
    load_adapter(model, tmp_path / 'dora', 'dora')
    with pytest.raises(ValueError, match='cannot be weighted'):
        merge(model, dict(dora=0.5))
    with pytest.raises(ValueError, match=r"no adapters \['other'\], but \['dora'\]"):
        merge(model, dict(other=0.5))


def test_what_pefts_format_has_no_place_for_is_refused(segmentor, tmp_path):
    model = segmentor()
    inject(model, lora_config(4, 8, 0.0, [], ()), NEW_PARTS)
    with pytest.raises(ValueError, match="has no 'default'"):
        save_adapter(model, tmp_path / 'none')
    model = segmentor()
    inject(model, lora_config(4, 8, 0.0, ['qkv']), NEW_PARTS)
    model.backbone.cls_token.requires_grad = True
    with pytest.raises(ValueError, match=r"no place for \['backbone.cls_token'\]"):
        save_adapter(model, tmp_path / 'token')


def test_a_folder_cut_short_or_empty_is_refused(segmentor, tmp_path):
    model = segmentor()
    inject(model, lora_config(4, 8, 0.0, ['qkv']), NEW_PARTS)
    save_adapter(model, tmp_path / 'adapter')
    with pytest.raises(FileNotFoundError, match=r'needs adapter_config.json and adapter_model.safetensors'):
        load_adapter(segmentor(), tmp_path)
    weights = tmp_path / 'adapter' / 'adapter_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match='was it cut short'):
        load_adapter(segmentor(), tmp_path / 'adapter')


def test_any_module_is_adapted_saved_and_loaded_without_a_runner(tmp_path):
    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        layers = dict(first=torch.nn.Linear(8, 8), act=torch.nn.GELU(), last=torch.nn.Linear(8, 3))
        return torch.nn.Sequential(OrderedDict(layers)).eval()

    model, other, x = build(), build(), torch.randn(2, 8)
    inject(model, peft_config('LoHaConfig', ['first'], r=2), ['last'])
    save_adapter(trained(model), tmp_path / 'adapter')
    expected = model.eval()(x)
    load_adapter(other, tmp_path / 'adapter')
    assert torch.equal(other(x), expected)
    merge(other)
    assert torch.allclose(other(x), expected, atol=1e-6)
    assert type(other.first) is type(other.last) is torch.nn.Linear


def test_names_that_peft_would_mistake_are_refused(tmp_path):
    model = torch.nn.ModuleDict(dict(head=torch.nn.Linear(4, 4), other_head=torch.nn.Linear(4, 4)))
    inject(model, lora_config(2, 4, 0.0, ['other_head']), ['head'])
    with pytest.raises(ValueError, match='would take other_head for head too'):
        save_adapter(model, tmp_path)


def test_an_adapter_of_unknown_base_asks_for_one(small_config, segmentor, tmp_path):
    plain_peft(segmentor(), tmp_path / 'theirs')
    with pytest.raises(ValueError, match=r'does not record the base .* set model.init_cfg'):
        init_model(small_config(lora=True), str(tmp_path / 'theirs'), device='cpu')
