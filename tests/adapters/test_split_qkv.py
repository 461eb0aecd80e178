"""Queries, keys and values of a fused layer, each with an adapter of its own: as of three layers in plain PEFT."""

import copy

import peft
import pytest
import torch
from conftest import relative_error
from mmseg.models.backbones.beit import BEiTAttention
from torch import nn

from mmseg_eomt.adapters import inject, lora_config, merge, separate_qkv
from mmseg_eomt.adapters.precision import reduce_precision
from mmseg_eomt.adapters.separate_qkv import ROWS
from mmseg_eomt.adapters.split_qkv import num_blocks
from mmseg_eomt.engine import LoRAHook
from mmseg_eomt.models.layers import Attention, qkv_linear

DIMS, RANK = 32, 4
TOKENS = torch.linspace(-1, 1, 2 * 7 * DIMS).view(2, 7, DIMS).sin()


class Fused(nn.Module):
    """A fused layer under its name."""

    def __init__(self, bias: str = 'qkv') -> None:
        super().__init__()
        self.qkv = qkv_linear(DIMS, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qkv(x)


class Separate(nn.Module):
    """The same as three layers, as transformers' models have them, with PEFT's own adapters."""

    def __init__(self, fused: nn.Linear, layers: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = layers or nn.ModuleDict({row: nn.Linear(DIMS, DIMS, fused.bias is not None) for row in ROWS})
        with torch.no_grad():
            for row, weight, bias in zip(
                ROWS, fused.weight.chunk(3), (torch.zeros(96) if fused.bias is None else fused.bias).chunk(3), strict=True
            ):
                layer = self.layers.get_submodule(row)
                layer.weight.copy_(weight)
                if layer.bias is not None:
                    layer.bias.copy_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.layers.get_submodule(row)(x) for row in ROWS], dim=-1)


def config(**changes):
    return lora_config(**{**dict(r=RANK, lora_alpha=8, lora_dropout=0.0, target_modules=['qkv'], split_qkv=True), **changes})


def moved(model: nn.Module) -> nn.Module:
    """Whatever trains has moved."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += parameter.requires_grad * 0.1 * torch.randn_like(parameter)
    return model


def split(bias: str = 'qkv', **changes) -> Fused:
    model = Fused(bias)
    inject(model, config(**changes))
    return moved(model)


def dinov3() -> nn.Module:
    module = pytest.importorskip('transformers.models.dinov3_vit.modeling_dinov3_vit')  # not in the oldest version
    return module.DINOv3ViTAttention(module.DINOv3ViTConfig(hidden_size=DIMS, num_attention_heads=2))


@pytest.mark.parametrize('bias', ['qkv', 'qv', ''])
@pytest.mark.parametrize('use_rslora', [False, True])
def test_split_adapters_are_those_of_three_layers_forward_and_backward(bias, use_rslora):
    model = split(bias, use_rslora=use_rslora)
    separate = Separate(model.qkv.base_layer, dinov3() if bias == 'qv' else None)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=RANK, lora_alpha=8, target_modules=list(ROWS), use_rslora=use_rslora), separate
    )
    pairs = {part: getattr(model.qkv, part)['default'].weight for part in ('lora_A', 'lora_B')}
    theirs = {p: [getattr(separate.layers.get_submodule(row), p)['default'].weight for row in ROWS] for p in pairs}
    with torch.no_grad():
        for part, weight in pairs.items():
            for own, given in zip(theirs[part], weight.chunk(3), strict=True):
                own.copy_(given)
    results = []
    for module in (model, separate):
        x = TOKENS.clone().requires_grad_()
        out = module(x)
        out.square().sum().backward()
        results.append((out, x.grad))

    assert all(relative_error(own, expected) < 1e-5 for own, expected in zip(*results, strict=True))
    for part, weight in pairs.items():
        assert relative_error(weight.grad, torch.cat([own.grad for own in theirs[part]])) < 1e-5


def test_queries_keys_and_values_have_the_rank_each_and_share_none():
    model = split()
    assert model.qkv.lora_A['default'].weight.shape == (3 * RANK, DIMS)
    assert model.qkv.lora_B['default'].weight.shape == (3 * DIMS, RANK)
    assert num_blocks(model.qkv) == 3
    assert torch.linalg.matrix_rank(model.qkv.get_delta_weight('default')) == 3 * RANK
    model.qkv.lora_A['default'].weight.data[:RANK] = 0  # that of queries
    changes = model.qkv.get_delta_weight('default').chunk(3)
    assert [bool(change.any()) for change in changes] == [False, True, True]


@pytest.mark.parametrize('start', ['pissa', 'olora'])
def test_pefts_starts_take_each_thirds_own_directions(start):
    model = Fused()
    separate, plain = Separate(model.qkv), model.qkv.weight.clone()
    inject(model, config(init_lora_weights=start))
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=RANK, lora_alpha=8, target_modules=list(ROWS), init_lora_weights=start), separate
    )
    for part in ('base_layer', 'lora_A.default', 'lora_B.default'):
        theirs = [separate.layers.get_submodule(f'{row}.{part}').weight for row in ROWS]
        assert torch.allclose(model.qkv.get_submodule(part).weight, torch.cat(theirs), atol=1e-6), part
    assert not torch.allclose(model.qkv.base_layer.weight, plain, atol=1e-3)


@pytest.mark.parametrize('start', [True, 'gaussian', 'orthogonal', 'minor'])
def test_a_fresh_model_computes_what_it_has_computed(start):
    model = Fused()
    before = model(TOKENS)
    inject(model, config(init_lora_weights=start))
    assert torch.allclose(model(TOKENS), before, atol=1e-6)


def test_the_three_share_one_draw_of_dropout():
    model = split(lora_dropout=0.5).train()
    for pair in (model.qkv.lora_A, model.qkv.lora_B, model.qkv.base_layer):
        weight = (pair if isinstance(pair, nn.Linear) else pair['default']).weight
        weight.data = weight.data.chunk(3)[0].repeat(3, 1)
    nn.init.zeros_(model.qkv.base_layer.bias)
    one, two = model(TOKENS), model(TOKENS)
    assert not torch.equal(one, two)
    assert all(torch.allclose(part, one.chunk(3, -1)[0], atol=1e-6) for part in one.chunk(3, -1))


@pytest.mark.parametrize('bias', ['qkv', 'qv', ''])
def test_merged_it_is_a_plain_layer_that_computes_the_same(bias):
    model = split(bias)
    expected = model(TOKENS)
    base = model.qkv.base_layer.weight.clone()
    model.qkv.merge(safe_merge=True)
    assert torch.allclose(model(TOKENS), expected, atol=1e-5)
    model.qkv.unmerge()
    assert torch.allclose(model.qkv.base_layer.weight, base, atol=1e-6)
    merge(model)
    assert type(model.qkv) is type(qkv_linear(DIMS, bias))
    assert torch.allclose(model(TOKENS), expected, atol=1e-5)


def test_a_compiler_sees_one_graph():
    model = split()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert torch.allclose(compiled(TOKENS), model(TOKENS), atol=1e-6)


def test_a_base_of_bf16_is_adapted_and_merged_in_fp32():
    model = Fused()
    reduce_precision(model, 'bf16')
    inject(model, config())
    expected = moved(model)(TOKENS)
    assert model.qkv.lora_A['default'].weight.dtype == torch.float32
    merge(model)
    assert relative_error(model(TOKENS), expected) < 0.02  # the reduced layer rounds its input


def test_a_weight_that_the_model_reads_without_calling_its_layer_has_the_adapters_in_it():
    attention = BEiTAttention(DIMS, 2, window_size=(2, 2), bias='qv_bias')
    x = torch.randn(2, 5, DIMS)
    before = attention(x)
    inject(attention, config())
    adapted = moved(attention)(x)
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge(attention)
    assert torch.allclose(attention(x), adapted, atol=1e-5)
    with pytest.raises(ValueError, match='reads the weight of its qkv layer'):
        separate_qkv(nn.Sequential(attention))


@pytest.mark.parametrize('bias', ['qkv', 'qv', ''])
def test_a_separated_model_computes_what_the_fused_one_does(bias):
    model = Attention(DIMS, 2, bias)
    separate = separate_qkv(copy.deepcopy(model))
    assert torch.allclose(separate(TOKENS), model(TOKENS), atol=1e-6)
    assert [name for name, _ in separate.qkv.named_children()] == list(ROWS)
    assert (separate.qkv.k_proj.bias is None) == (bias != 'qkv')
    with pytest.raises(ValueError, match='no linear layer called qkv'):
        separate_qkv(separate)
    with pytest.raises(ValueError, match=r'The model has adapters.*separate a plain one'):
        separate_qkv(split())


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (dict(use_dora=True), 'split_qkv does not go with use_dora=True'),
        (dict(lora_bias=True), 'split_qkv does not go with lora_bias=True'),
        (dict(bias='all'), "split_qkv does not go with bias='all'"),
        (dict(init_lora_weights='eva'), "split_qkv does not go with init_lora_weights='eva'"),
        (dict(target_modules=['in_proj_weight']), 'split_qkv does not go with target_parameters'),
        (dict(split_qkv='yes'), "split_qkv is True or False, got 'yes'"),
    ],
)
def test_what_three_pairs_cannot_be_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        config(**changes)


def test_another_method_than_lora_is_not_split():
    with pytest.raises(ValueError, match='split_qkv is an option of LoRA, got LoHaConfig'):
        LoRAHook(peft=dict(type='LoHaConfig', r=4), split_qkv=True).make_config()
    with pytest.raises(ValueError, match=r'split_qkv takes LoRA without variants, got MiCA|Unknown init'):
        inject(Fused(), config(init_lora_weights='mica'))


@pytest.mark.parametrize('layer', [nn.Linear(DIMS, 2 * DIMS), nn.Conv2d(DIMS, 3 * DIMS, 1), 'int8'])
def test_a_layer_that_has_no_thirds_is_refused_by_name(layer):
    if layer == 'int8':
        layer = nn.Linear(DIMS, 3 * DIMS)
        layer.weight = nn.Parameter(torch.zeros(3 * DIMS, DIMS, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r'split_qkv takes linear layers whose 3·d rows .* and attn.qkv is .*exclude_modules'
    ):
        inject(nn.ModuleDict(dict(attn=nn.ModuleDict(dict(qkv=layer)))), config())


def test_without_a_fused_layer_it_is_refused():
    with pytest.raises(ValueError, match='split_qkv is set, and no layer called qkv is adapted'):
        inject(nn.ModuleDict(dict(proj=nn.Linear(DIMS, DIMS))), config(target_modules=['qkv', 'proj']))
