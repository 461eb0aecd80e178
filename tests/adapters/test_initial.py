"""Starts out of the base: what they are, that the model is where it was, and how files find them again."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import make_config
from folders import small
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from mmseg.apis import init_model
from torch import nn

from mmseg_eomt.adapters import inject, load_adapter, lora_config, merge, save_adapter, set_adapter
from mmseg_eomt.adapters.checkpoint import fill_from_model
from mmseg_eomt.adapters.separate_qkv import separate_qkv

MINOR = dict(type='LoRAHook', r=4, lora_alpha=6, split_qkv=True, peft=dict(init_lora_weights='minor'))
X = torch.linspace(-1, 1, 40).view(5, 8)


def started(rank: int = 2, alpha: float = 6, **fields) -> nn.Module:
    """The small model with adapters in its first layer, along its minor directions."""
    model = small()
    inject(model, lora_config(rank, alpha, 0.0, ['0'], init_lora_weights='minor', **fields), ['2'])
    return model


def move(model: nn.Module) -> nn.Module:
    """As training does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
    return model.eval()


@pytest.mark.parametrize(('fields', 'scale'), [({}, 3), (dict(use_rslora=True), 6 / 2**0.5)])
def test_the_smallest_singular_directions_leave_the_base_and_start_the_adapters(fields, scale):
    """SoMA's definition, with all singular directions from NumPy."""
    weight = small()[0].weight.detach().double()
    layer = started(**fields)[0]
    a, b = (part['default'].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=True)
    minor = torch.from_numpy(left[:, -2:] * values[-2:] @ right[-2:])
    assert torch.allclose(scale * b @ a, minor, atol=1e-5)
    assert torch.allclose(layer.base_layer.weight.double(), weight - minor, atol=1e-5)
    assert torch.allclose(layer.base_layer.weight + scale * b @ a, weight, atol=1e-5)
    roots = torch.from_numpy(values[-2:] / scale)
    assert torch.allclose(a @ a.T, roots.diag(), atol=1e-5)  # both have the roots of S / s
    assert torch.allclose(b.T @ b, roots.diag(), atol=1e-5)


@pytest.mark.parametrize('fields', [{}, dict(use_dora=True)])
def test_the_model_starts_where_it_was(fields):
    assert torch.allclose(started(**fields)(X), small()(X), atol=1e-6)


@pytest.mark.parametrize(
    'fields',
    [{}, dict(use_rslora=True), dict(use_dora=True), dict(rank_pattern={'0': 3}), dict(alpha_pattern={'0': 1})],
    ids=str,
)
def test_a_folder_is_ordinary_lora_of_twice_the_rank_on_the_untouched_base(tmp_path, fields):
    model = move(started(**fields))
    save_adapter(model, tmp_path)
    plain = small()
    peft.PeftModel.from_pretrained(plain, tmp_path)
    assert torch.allclose(plain(X), model(X), atol=1e-5)
    rank = fields.get('rank_pattern', {}).get('0', 2)
    assert plain[0].lora_A['default'].weight.shape == (2 * rank, 8)
    assert torch.equal(plain[0].base_layer.weight, small()[0].weight)

    ours = small()
    load_adapter(ours, tmp_path)
    assert torch.allclose(ours(X), model(X), atol=1e-5)


def test_exported_adapters_go_beside_others_and_are_weighted(tmp_path):
    models = [move(started()), move(started(alpha=9))]
    beside = small()
    for name, model in zip('ab', models):
        save_adapter(model, tmp_path / name)
        load_adapter(beside, tmp_path / name, name)
    for name, model in zip('ab', models):
        set_adapter(beside, name)
        assert torch.allclose(beside(X), model(X), atol=1e-5)
    merge(beside, dict(a=0.5, b=0.5))
    for model in models:
        merge(model)
    assert torch.allclose(beside[0].weight, (models[0][0].weight + models[1][0].weight) / 2, atol=1e-5)


def test_a_weighted_merge_of_the_start_itself_is_refused():
    model = small()
    inject(model, lora_config(2, 6, 0.0, ['0'], init_lora_weights='minor'))
    with pytest.raises(ValueError, match=r'cannot be weighted'):
        merge(model, dict(default=0.5))


def test_a_weight_of_two_layers_is_refused():
    model = small()
    model.append(nn.Linear(8, 8))
    model[3].weight = model[0].weight
    with pytest.raises(ValueError, match=r'0.weight and 3.weight are one weight, which this start'):
        inject(model, lora_config(2, 6, 0.0, ['0', '3'], init_lora_weights='minor'))


def test_a_base_of_codes_is_refused():
    """As bitsandbytes keeps it: directions cannot be taken out of it again."""
    model = small()
    model[0].weight = nn.Parameter(model[0].weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"adapters of 0 start .* of 8 or 4 bits here: set base_precision='fp32' or 'bf16'"):
        inject(model, lora_config(2, 6, 0.0, ['0'], init_lora_weights='minor'), fresh=False)


def test_adapters_of_another_start_are_refused_once_the_base_has_changed():
    weights = {name: value for name, value in started(alpha=9).state_dict().items() if '.base_layer.' not in name}
    with pytest.raises(RuntimeError, match=r'another start .* load it into a model without adapters'):
        fill_from_model(started(), weights)


@pytest.mark.parametrize(
    ('model', 'fields', 'message'),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 1)), {}, r'starts linear layers, and 0 is a Conv2d: exclude it'),
        (nn.Sequential(nn.Embedding(8, 8)), {}, r'starts linear layers, and 0 is a Embedding'),
        (nn.Sequential(nn.Linear(8, 3)), dict(r=4), r'has 3 singular directions, from which 4 cannot be taken'),
        (nn.Sequential(nn.Linear(8, 8)).bfloat16(), {}, r"would round them away: set base_precision='fp32'"),
    ],
)
def test_layers_without_such_directions_are_refused(model, fields, message):
    config = dict(r=2, lora_alpha=4, lora_dropout=0, target_modules=['0'], init_lora_weights='minor')
    with pytest.raises(ValueError, match=message):
        inject(model, lora_config(**{**config, **fields}))


def test_ranks_by_layer_under_rslora_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match=r'rsLoRA with rank_pattern .* keep the checkpoint'):
        save_adapter(started(use_rslora=True, rank_pattern={'0': 3}), tmp_path)


@pytest.fixture(scope='module')
def run(scenes, base, tmp_path_factory) -> Runner:
    """A run from minor directions of queries, keys and values apart, with an average of its weights."""
    hooks = [dict(MINOR, save_adapter=True), dict(type='EMAHook', momentum=0.3)]
    config = make_config(scenes, tmp_path_factory.mktemp('minor'), lora=True, load_from=base, custom_hooks=hooks)
    config.merge_from_dict(dict(val_dataloader=None, val_cfg=None, val_evaluator=None))
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_a_slim_checkpoint_holds_the_start_in_place_of_the_base(run, base):
    weights = torch.load(Path(run.work_dir) / 'iter_3.pth', weights_only=True)['state_dict']
    assert not [name for name in weights if name.endswith('.base_layer.weight')]
    starts = {name: value for name, value in weights.items() if '.adapter_start_' in name}
    assert len(starts) == 2 * 2 * 4  # A and B of qkv and proj of four blocks
    assert all(value.abs().max() > 0 for value in starts.values())


def test_the_base_comes_back_bit_for_bit_also_below_an_average(run, small_config):
    loaded = init_model(small_config(lora=True), f'{run.work_dir}/iter_3.pth', device='cpu').state_dict()
    averaged = next(hook for hook in run.hooks if isinstance(hook, EMAHook)).ema_model.module.state_dict()
    assert loaded.keys() == averaged.keys()
    assert all(torch.equal(value, averaged[name]) for name, value in loaded.items())
    for name, value in run.model.state_dict().items():
        if '.base_layer.' in name:
            assert torch.equal(loaded[name], value), name


def test_evaluation_takes_the_checkpoint_and_the_exported_folder(run, small_config):
    results = [
        Runner.from_cfg(
            small_config(lora=True, load_from=f'{run.work_dir}/{name}', name=f'test{number}', custom_hooks=[MINOR])
        ).test()
        for number, name in enumerate(('iter_3.pth', 'adapters/iter_3'))
    ]
    assert results[0] == pytest.approx(results[1])


def test_a_new_run_goes_on_from_the_adapters_and_their_base(run, small_config):
    """Without EMA, so that a checkpoint of its own start is what was loaded."""
    before = torch.load(f'{run.work_dir}/iter_3.pth', weights_only=True)['state_dict']
    changes = {'load_from': f'{run.work_dir}/iter_3.pth', 'custom_hooks': [MINOR], 'max_iters': 1}
    runner = Runner.from_cfg(small_config(lora=True, **changes))
    runner.train()
    after = torch.load(f'{runner.work_dir}/iter_1.pth', weights_only=True)['state_dict']
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if '.adapter_start_' in name)
    base = {name: value for name, value in run.model.state_dict().items() if '.base_layer.' in name}
    assert all(torch.equal(value, runner.model.state_dict()[name]) for name, value in base.items())
    with pytest.raises(ValueError, match=r"init_lora_weights: 'minor', here True"):
        Runner.from_cfg(small_config(lora=True, **{**changes, 'custom_hooks': [dict(MINOR, peft={})]})).train()


class _Fused(nn.Module):
    """Queries, keys and values of one layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qkv(x)


def test_split_rows_start_as_three_layers_of_somas(tmp_path):
    """And they go on as three: gradients, and the folder on the untouched base."""
    config = dict(r=2, lora_alpha=6, lora_dropout=0.0, target_modules=['qkv'], init_lora_weights='minor')
    fused = _Fused()
    inject(fused, lora_config(**config, split_qkv=True))
    layers = []
    for weight, bias in zip(_Fused().qkv.weight.chunk(3), _Fused().qkv.bias.chunk(3)):
        layer = nn.Sequential(nn.Linear(8, 8))
        layer[0].load_state_dict(dict(weight=weight, bias=bias))
        inject(layer, lora_config(**{**config, 'target_modules': ['0']}))
        layers.append(layer)

    assert torch.equal(torch.cat([layer[0].base_layer.weight for layer in layers]), fused.qkv.base_layer.weight)
    outputs = fused(X), torch.cat([layer(X) for layer in layers], -1)
    assert torch.allclose(*outputs, atol=1e-5)
    for output in outputs:
        output.sin().sum().backward()
    for part in ('lora_A', 'lora_B'):
        weights = [getattr(layer[0], part)['default'].weight for layer in layers]
        own = getattr(fused.qkv, part)['default'].weight
        assert torch.equal(torch.cat(weights), own)
        assert torch.allclose(torch.cat([weight.grad for weight in weights]), own.grad, atol=1e-5)

    move(fused)
    save_adapter(fused, tmp_path)
    ours, plain = _Fused(), separate_qkv(_Fused())
    load_adapter(ours, tmp_path)
    peft.PeftModel.from_pretrained(plain, tmp_path)
    assert torch.allclose(ours(X), fused(X), atol=1e-5)
    assert torch.allclose(plain(X), fused(X), atol=1e-5)
