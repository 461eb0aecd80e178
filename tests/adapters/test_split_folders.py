"""Adapters of queries, keys and values apart, in checkpoints and in PEFT's format, where they are those of three layers."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from conftest import make_config, merged
from folders import CONFIG, WEIGHTS, rewrite
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import init_model
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, save_adapter, separate_qkv, set_adapter
from mmseg_eomt.adapters.names import configs_of
from mmseg_eomt.adapters.peft_folder import read_folder
from mmseg_eomt.adapters.separate_qkv import ROWS
from mmseg_eomt.adapters.split_qkv import num_blocks, split_layers
from mmseg_eomt.commands import adapter
from mmseg_eomt.engine import LoRAHook
from mmseg_eomt.models.layers import Attention

IMAGE, META = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64), [dict(img_shape=(64, 64), ori_shape=(64, 64))]
TOKENS = torch.linspace(-1, 1, 2 * 7 * 32).view(2, 7, 32).sin()
HOOK = dict(type='LoRAHook', r=4, lora_alpha=8, split_qkv=True)
QKV = [f'{part}.blocks.{i}.attn.qkv' for part in ('backbone', 'decode_head') for i in (0, 1)]


@torch.no_grad()
def scores(model: nn.Module) -> torch.Tensor:
    return model.eval().encode_decode(IMAGE, META)


@pytest.fixture(scope='module')
def trained(scenes, base, tmp_path_factory) -> str:
    """A slim checkpoint of split adapters on the base, trained for two iterations and exported too; to be read only."""
    changes = dict(load_from=base, custom_hooks=[dict(HOOK, save_adapter=True), dict(type='MaskAnnealingHook')])
    config = make_config(scenes, tmp_path_factory.mktemp('runs') / 'split', True, 2, **changes)
    config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner = Runner.from_cfg(config)
    runner.train()
    return f'{runner.work_dir}/iter_2.pth'


@pytest.fixture
def recipe(small_config):
    """A config of a run with split adapters, or with other options of the hook."""

    def make(max_iters: int = 2, hook: dict = HOOK, **changes) -> Config:
        return small_config(True, max_iters, custom_hooks=[hook, dict(type='MaskAnnealingHook')], **changes)

    return make


def folder_of(checkpoint: str) -> Path:
    return Path(checkpoint).parent / 'adapters' / 'iter_2'


def test_a_slim_checkpoint_of_split_adapters_is_loaded_as_noted(small_config, trained):
    state_dict = torch.load(trained, weights_only=True)['state_dict']
    assert not any('base_layer' in name for name in state_dict)
    model = init_model(small_config(), trained, device='cpu')
    assert split_layers(model) == QKV
    assert model.backbone.blocks[1].attn.qkv.lora_A['default'].weight.shape == (12, 32)
    assert num_blocks(model.backbone.blocks[1].attn.proj) == 1
    expected = scores(model)
    merge(model)
    assert torch.allclose(scores(model), expected, atol=1e-5)


def test_it_is_evaluated_merged_and_trained_on(recipe, trained, small_config):
    expected = merged(init_model(small_config(), trained, device='cpu'))
    tested = Runner.from_cfg(recipe(load_from=trained, name='test'))
    tested.test()
    assert tested.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tested.model.state_dict().items())

    resumed = Runner.from_cfg(recipe(4, load_from=trained, resume=True, name='on'))
    resumed.train()
    assert resumed.iter == 4
    state_dict = torch.load(f'{resumed.work_dir}/iter_4.pth', weights_only=True)['state_dict']
    assert state_dict.keys() == torch.load(trained, weights_only=True)['state_dict'].keys()


@pytest.mark.parametrize('form', ['checkpoint', 'folder'])
def test_adapters_that_are_split_are_refused_where_the_others_are_set(recipe, trained, lora, form):
    whole = dict(type='LoRAHook', r=4, lora_alpha=8)
    given = dict(checkpoint=(trained, lora), folder=(str(folder_of(trained)), str(folder_of(lora))))[form]
    with pytest.raises(
        ValueError, match=r'other adapters than LoRAHook is set to: split_qkv: True, here False. Set the same'
    ):
        Runner.from_cfg(recipe(hook=whole, load_from=given[0], name='whole')).train()
    with pytest.raises(
        ValueError, match=r'other adapters than LoRAHook is set to: .*split_qkv: False, here True. Set the same'
    ):
        Runner.from_cfg(recipe(load_from=given[1], name='split')).train()


def test_plain_peft_takes_our_folder_on_a_separated_segmentor(small_config, base, trained):
    ours = init_model(small_config(), trained, device='cpu')
    segmentor = separate_qkv(init_model(small_config(), base, device='cpu'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # such as PEFT's of missing keys
        theirs = peft.PeftModel.from_pretrained(segmentor, folder_of(trained))
    assert torch.allclose(scores(theirs.base_model.model), scores(ours), atol=1e-5)
    values = json.loads((folder_of(trained) / CONFIG).read_text())
    assert 'split_qkv' not in values
    assert {f'{name}.{row}' for name in QKV for row in ROWS} < set(values['target_modules'])
    assert load_file(folder_of(trained) / WEIGHTS)[f'base_model.model.{QKV[0]}.k_proj.lora_B.weight'].shape == (32, 4)


def test_our_folder_comes_back_as_it_was(recipe, small_config, base, trained):
    folder, expected = folder_of(trained), init_model(small_config(), trained, device='cpu')
    for model in (init_model(small_config(), str(folder), device='cpu'), init_model(small_config(), base, device='cpu')):
        if not configs_of(model):
            load_adapter(model, folder)
        pairs = [name for name in model.state_dict() if '.lora_' in name]
        assert len(pairs) == 16 and split_layers(model) == QKV
        assert all(torch.equal(model.state_dict()[name], expected.state_dict()[name]) for name in pairs)
        assert torch.equal(scores(model), scores(expected))
    runner = Runner.from_cfg(recipe(load_from=str(folder), name='from_folder'))
    runner.test()
    assert torch.allclose(scores(runner.model), scores(expected), atol=1e-5)


@pytest.fixture
def theirs(small_config, base, tmp_path) -> tuple[Path, torch.Tensor]:
    """A folder that plain PEFT has written of a separated segmentor, and what that predicts."""
    segmentor = separate_qkv(init_model(small_config(), base, device='cpu'))
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=[*ROWS, 'attn.proj'], modules_to_save=[*LoRAHook().trainable_modules[1:]]
    )
    model = peft.get_peft_model(segmentor, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / 'theirs')
    return tmp_path / 'theirs', scores(segmentor)


def test_a_folder_of_plain_peft_on_a_separated_segmentor_is_put_back_as_split(recipe, small_config, base, theirs):
    folder, expected = theirs
    by_hand = init_model(small_config(), base, device='cpu')
    load_adapter(by_hand, folder)
    config = small_config()
    config.model.init_cfg = dict(type='Pretrained', checkpoint=base)
    runner = Runner.from_cfg(recipe(load_from=str(folder), **{'model.init_cfg': config.model.init_cfg}, name='from_theirs'))
    runner.test()
    for model in (by_hand, init_model(config, str(folder), device='cpu'), runner.model):
        assert not configs_of(model) or split_layers(model) == QKV
        assert torch.allclose(scores(model), expected, atol=1e-5)


def test_the_tool_tells_compares_merges_and_exports_them(small_config, config_file, trained, tmp_path, in_process):
    config, folder, out = config_file(small_config()), tmp_path / 'exported', tmp_path / 'merged.pth'
    told = in_process(adapter.main, 'info', trained)
    assert 'split_qkv         True' in told
    in_process(adapter.main, 'export', config, trained, folder)
    told = in_process(adapter.main, 'diff', trained, folder)
    assert all(f' {name}' not in told for name in ('split_qkv:', 'target_modules:', 'only in b', 'backbone adapters'))
    in_process(adapter.main, 'merge', config, trained, out)
    expected = scores(init_model(small_config(), trained, device='cpu'))
    assert torch.allclose(scores(init_model(small_config(), str(out), device='cpu')), expected, atol=1e-5)


def small(bias: str = 'qkv') -> Attention:
    torch.manual_seed(1)
    return Attention(32, 2, bias)


def adapted(folder: Path, bias: str = 'qkv', **changes) -> torch.Tensor:
    """Save an adapter of a small model whose every trained parameter has moved, and compute with it."""
    model, settings = small(bias), dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=['qkv', 'proj'])
    inject(model, lora_config(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad * torch.randn_like(parameter)
    save_adapter(model, folder)
    return model(TOKENS).detach()


@pytest.mark.parametrize('bias', ['qkv', 'qv', ''])
@pytest.mark.parametrize(
    'changes',
    [
        dict(use_rslora=True),
        dict(rank_pattern={'qkv': 6}, alpha_pattern={'attn': 1, 'qkv': 3, 'proj': 5}),
        dict(init_lora_weights='pissa'),
        dict(init_lora_weights='minor', rank_pattern={'qkv': 2}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_ranks_scales_and_starts_come_through_pefts_format(tmp_path, bias, changes):
    expected = adapted(tmp_path / 'ours', bias, split_qkv=True, **changes)
    theirs = peft.PeftModel.from_pretrained(separate_qkv(small(bias)), tmp_path / 'ours')
    theirs.save_pretrained(tmp_path / 'theirs')
    ours, back = small(bias), small(bias)
    load_adapter(ours, tmp_path / 'ours')
    load_adapter(back, tmp_path / 'theirs')
    for model in (theirs, ours, back):
        assert torch.allclose(model(TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize('order', [('split', 'whole'), ('whole', 'split')])
def test_adapters_that_are_split_stand_beside_those_that_are_not(tmp_path, order):
    alone = {name: adapted(tmp_path / name, split_qkv=name == 'split') for name in order}
    model, base = small(), small()(TOKENS)
    for name in order:
        load_adapter(model, tmp_path / name, name)
    for name in order:
        set_adapter(model, name)
        assert [num_blocks(model.qkv, adapter) for adapter in ('split', 'whole')] == [3, 1]
        assert torch.allclose(model(TOKENS), alone[name], atol=1e-6)
        assert not torch.allclose(model(TOKENS), base, atol=1e-3)
    mixed = model.eval().qkv(TOKENS, adapter_names=list(order))  # PEFT's batch of an adapter for each image
    for index, name in enumerate(order):
        set_adapter(model, name)
        assert torch.allclose(mixed[index], model.qkv(TOKENS)[index], atol=1e-6)
    changes = {name: model.qkv.get_delta_weight(name) for name in order}
    expected = small().qkv.weight + 0.5 * changes['split'] + 2 * changes['whole']
    merge(model, dict(split=0.5, whole=2.0))
    assert torch.allclose(model.qkv.weight, expected, atol=1e-6)


def plain_peft(folder: Path, targets: list[str] | str = ROWS, **changes) -> torch.Tensor:
    """What plain PEFT computes and saves of a small separated model."""
    config = dict(r=4, lora_alpha=8, target_modules=targets if isinstance(targets, str) else list(targets), **changes)
    model = peft.get_peft_model(separate_qkv(small()), peft.LoraConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.requires_grad * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model(TOKENS).detach()


@pytest.mark.parametrize(
    ('targets', 'changes'),
    [
        (['q_proj', 'v_proj'], {}),
        (['qkv.q_proj', 'proj'], {}),
        (r'qkv\.[qk]_proj', {}),
        (ROWS, dict(exclude_modules=['k_proj'])),
        ([*ROWS, 'proj'], dict(rank_pattern={'[qkv]_proj': 2}, alpha_pattern={'_proj': 4, '.*proj': 6})),
    ],
)
def test_whatever_plain_peft_has_targeted_is_read(tmp_path, targets, changes):
    expected, model = plain_peft(tmp_path, targets, **changes), small()
    load_adapter(model, tmp_path)
    assert torch.allclose(model(TOKENS), expected, atol=1e-5)


def test_a_row_without_an_adapter_stays_as_the_base(tmp_path):
    plain_peft(tmp_path, ['q_proj', 'v_proj'])
    model = small()
    load_adapter(model, tmp_path)
    assert [bool(rows.any()) for rows in model.qkv.get_delta_weight('default').chunk(3)] == [True, False, True]


@pytest.mark.parametrize('lost', ['1.qkv.q_proj.lora_A', '1.qkv.k_proj.lora', '1.qkv'])
def test_a_folder_of_peft_that_lacks_tensors_is_refused(tmp_path, lost):
    model = peft.get_peft_model(separate_qkv(nn.Sequential(small(), small())), peft.LoraConfig(target_modules=list(ROWS)))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: [weights.pop(name) for name in list(weights) if lost in name])
    model = nn.Sequential(small(), small())
    with pytest.raises(
        (ValueError, RuntimeError), match=r'lacks the adapter of 1.qkv\.[qk]_proj|2 missing(.|\n)*1.qkv.lora_A'
    ):
        load_adapter(model, tmp_path)
    assert not configs_of(model)


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (dict(rank_pattern={'k_proj': 2}), r'adapters of queries, keys and values of qkv whose rank differ \(\[2, 4\]\)'),
        (dict(targets=['q_proj', 'v_proj'], bias='lora_only'), 'trains the bias of qkv in some of queries, keys and values'),
        (dict(alpha_pattern={'v_proj': 2}), r'whose lora_alpha differ \(\[2, 8\]\)'),
        (
            dict(use_dora=True),
            'that are not plain LoRA, such as .*lora_magnitude_vector: load them with PEFT on separate_qkv',
        ),
    ],
)
def test_three_adapters_that_are_not_alike_are_left_to_peft(tmp_path, changes, told):
    if 'bias' in changes and Version(peft.__version__) < Version('0.21'):
        pytest.skip("earlier versions of PEFT's format have no place for bare biases")
    plain_peft(tmp_path, **changes)
    with pytest.raises(ValueError, match=told):
        load_adapter(small(), tmp_path)


def test_a_separated_model_takes_folders_as_peft_does(tmp_path):
    expected, model = plain_peft(tmp_path), separate_qkv(small())
    load_adapter(model, tmp_path)
    assert torch.allclose(model(TOKENS), expected, atol=1e-6)
    assert read_folder(tmp_path)['meta']['adapter']['peft']['target_modules'] != list(ROWS)
