"""LoRA's linear layer in one step gives PEFT's numbers and keeps less."""

import copy

import pytest
import torch
from conftest import relative_error
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mmseg_eomt.adapters import fused_lora
from mmseg_eomt.adapters.config import lora_config
from mmseg_eomt.adapters.fused_lora import FusedLinear
from mmseg_eomt.adapters.inject import inject
from mmseg_eomt.models.layers import KeyBiasFreeLinear


def adapted(layer: nn.Module | None = None, **config) -> nn.Module:
    """A layer ``qkv`` of 8 to 24 with adapters that change its output."""
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(qkv=nn.Linear(8, 24) if layer is None else layer))
    inject(model, lora_config(**dict(dict(r=2, lora_alpha=3, lora_dropout=0.3, target_modules=('qkv',)), **config)))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter) if 'lora_B' in name else None
    return model.train()


def numbers(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of the input and of all that trains."""
    x = x.detach().requires_grad_()
    out = model['qkv'](x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *trained])]


def is_fused(out: torch.Tensor) -> bool:
    return '_AdaptedLinear' in repr(out.grad_fn)


@pytest.mark.parametrize('config', [{}, dict(bias='lora_only'), dict(use_rslora=True), dict(split_qkv=True)])
@pytest.mark.parametrize('layer', [nn.Linear, KeyBiasFreeLinear])
def test_numbers_are_peft_s_where_the_same_elements_are_dropped(layer, config, monkeypatch):
    kept = torch.rand(10, 8) > 0.3
    model = adapted(layer(8, 24), **config)
    monkeypatch.setattr(fused_lora, '_drawn', lambda x, rate: (kept, rate))
    monkeypatch.setattr(torch.nn.functional, 'dropout', lambda x, p, *_: x * kept.view(2, 5, 8) / (1 - p))
    x = torch.randn(2, 5, 8)
    given = numbers(model, x)
    monkeypatch.setattr(FusedLinear, 'forward', Linear.forward)
    expected = numbers(model, x)
    assert is_fused(given[0]) and not is_fused(expected[0])
    assert len(given) == len(expected) == (5 if 'bias' in config else 4)
    assert all(relative_error(*pair) < 1e-5 for pair in zip(given, expected))


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing_drops_the_same_elements_again(reentrant):
    model, x = adapted(lora_dropout=0.5), torch.randn(4, 8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_('lora_B' in name)
    layer = model['qkv']
    change = checkpoint(layer, x.requires_grad_(), use_reentrant=reentrant) - layer.base_layer(x)
    # linear in B: its product with the gradient is the change itself, if both had the same dropout
    change.sum().backward()
    b = layer.lora_B['default'].weight
    assert torch.allclose((b.grad * b).sum(), change.sum(), rtol=1e-4)


@pytest.mark.parametrize('shape', [(8,), (0, 8), (2, 3, 4, 8)])
def test_inputs_of_any_shape_are_taken(shape):
    layer = adapted(lora_dropout=0.0)['qkv']
    x = torch.randn(shape)
    out = layer(x)
    assert is_fused(out) and out.shape == (*shape[:-1], 24)
    assert torch.allclose(out, Linear.forward(layer, x), atol=1e-5)


def test_dropout_keeps_the_fraction_and_the_mean_that_it_should():
    torch.manual_seed(0)
    kept, rate = fused_lora._drawn(torch.empty(3, 1000, 333), 0.05)
    assert kept.shape == (3000, 333) and abs(rate - 0.05) < 1e-5
    assert abs(float(kept.float().mean()) - 0.95) < 1e-3
    model = adapted()
    x = torch.randn(1, 8)
    mean = model['qkv'](x.expand(100_000, 8)).mean(0)
    assert torch.allclose(mean, model.eval()['qkv'](x)[0], atol=0.05)


def test_less_is_kept_for_the_backward_pass():
    def kept(forward) -> int:
        sizes = {}
        with saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            out = forward(layer, x)
        return sum(sizes.values()) if out.requires_grad else 0

    model = adapted()
    layer, x = model['qkv'], torch.randn(500, 8, requires_grad=True)
    assert 0 < kept(FusedLinear.forward) < 0.7 * kept(Linear.forward)


def two_adapters(model: nn.Module) -> None:
    config = lora_config(r=2, lora_alpha=1, lora_dropout=0.0, target_modules=('qkv',))
    model['qkv'].update_layer('second', 2, 1, config=config)
    model['qkv'].set_adapter(['default', 'second'])


def watched(model: nn.Module) -> None:
    model['qkv'].lora_A['default'].register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize('change', [two_adapters, watched, lambda model: model['qkv'].enable_adapters(False)])
def test_all_else_is_left_to_peft(change):
    model = adapted(lora_dropout=0.0)
    change(model)
    x = torch.randn(2, 5, 8)
    out = model['qkv'](x)
    assert not is_fused(out)
    assert torch.equal(out, Linear.forward(model['qkv'], x))


def test_a_variant_and_autocast_are_left_to_peft():
    x = torch.randn(2, 5, 8)
    assert not is_fused(adapted(use_dora=True)['qkv'](x))
    with torch.autocast('cpu', torch.bfloat16):
        assert not is_fused(adapted()['qkv'](x))


def test_a_copied_and_merged_layer_is_as_before():
    model = copy.deepcopy(adapted(lora_dropout=0.0))
    x = torch.randn(2, 5, 8)
    expected = model['qkv'](x)
    model['qkv'].merge()
    assert relative_error(model['qkv'](x), expected) < 1e-5
