"""What saves time and memory in the mask module gives the numbers of the module as it is written."""

import io

import pytest
import torch
from conftest import relative_error
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune

from mmseg_eomt.models import mask_module, mask_rows
from mmseg_eomt.models.mask_module import Upscale

PRECISE = 1e-5


def as_written(queries: torch.Tensor, patches: torch.Tensor, blocks: nn.Sequential) -> torch.Tensor:
    for block in blocks:
        patches = block(patches)
    return torch.einsum('bqc,bhwc->bqhw', queries, patches)


def mask_logits(queries: torch.Tensor, patches: torch.Tensor, blocks: nn.Module) -> torch.Tensor:
    return blocks(queries, patches)


def gradients(function, inputs: tuple, blocks: nn.Sequential) -> dict[str, torch.Tensor]:
    logits = function(*inputs, blocks)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    tensors = dict(blocks.named_parameters(), queries=inputs[0], patches=inputs[1])
    grads = torch.autograd.grad((logits * weights).sum(), list(tensors.values()))
    return dict(zip(tensors, grads), logits=logits)


def example(rows: int = 7) -> tuple[tuple[torch.Tensor, torch.Tensor], nn.Sequential]:
    blocks = Upscale(16, 16)
    return (torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, rows, 6, 16, requires_grad=True)), blocks


@pytest.mark.parametrize('rows_at_once', [1, 3, 7])
def test_logits_and_gradients_are_those_of_the_whole_maps(rows_at_once, monkeypatch):
    monkeypatch.setattr(mask_module, 'STRIP_ELEMENTS', rows_at_once * 6 * 16 * 16)
    inputs, blocks = example()
    expected = gradients(as_written, inputs, blocks)
    given = gradients(mask_logits, inputs, blocks)
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(given[name], value) < PRECISE, name


def test_the_way_of_other_devices_gives_the_same(monkeypatch):
    monkeypatch.setattr(mask_module, 'on_cpu', lambda tensor: False)
    inputs, blocks = example()
    expected = gradients(as_written, inputs, blocks)
    for name, value in gradients(mask_logits, inputs, blocks).items():
        assert relative_error(value, expected[name]) < PRECISE, name


@pytest.mark.parametrize('rows_at_once', [1, 3, 7])
@torch.no_grad()
def test_logits_without_gradients_are_those_of_the_whole_maps(rows_at_once, monkeypatch):
    monkeypatch.setattr(mask_rows, 'ROW_ELEMENTS', rows_at_once * 6 * 16 * 16)
    inputs, blocks = example()
    assert relative_error(mask_logits(*inputs, blocks), as_written(*inputs, blocks)) < PRECISE
    with torch.autocast('cpu', dtype=torch.bfloat16):
        lower = mask_logits(*inputs, blocks)
    assert lower.dtype == torch.bfloat16
    assert relative_error(lower.float(), as_written(*inputs, blocks)) < 0.05


@pytest.mark.parametrize('rows_at_once', [2, 5])
def test_gradients_are_those_of_finite_differences(rows_at_once, monkeypatch):
    monkeypatch.setattr(mask_module, 'STRIP_ELEMENTS', rows_at_once * 2 * 4 * 16)
    blocks = Upscale(4, 16).double()
    queries, patches = torch.randn(1, 2, 4).double().requires_grad_(), torch.randn(1, 5, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: blocks(*given[:2]), (queries, patches, *blocks.parameters()))


@pytest.mark.parametrize('frozen', [('',), ('0.conv1', '1.conv2'), ('0.norm.weight', '1.conv1.bias', '1.norm.bias')])
def test_frozen_weights_get_no_gradient_and_the_rest_the_same(frozen):
    (queries, patches), blocks = example()
    expected = gradients(as_written, (queries, patches), blocks)
    for name, parameter in blocks.named_parameters():
        parameter.requires_grad = not name.startswith(frozen)
    (
        blocks(queries, patches) * torch.randn(expected['logits'].shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    given = dict({name: p.grad for name, p in blocks.named_parameters()}, queries=queries.grad, patches=patches.grad)
    for name, grad in given.items():
        if name.startswith(frozen) and name not in ('queries', 'patches'):
            assert grad is None, name
        else:
            assert relative_error(grad, expected[name]) < PRECISE, name


@pytest.mark.parametrize('matched', [[], [1, 3]])
def test_queries_without_a_gradient_change_nothing(matched):
    (queries, patches), blocks = example()

    def some(*inputs) -> torch.Tensor:
        return mask_logits(*inputs)[:, matched]

    def as_written_some(*inputs) -> torch.Tensor:
        return as_written(*inputs)[:, matched]

    expected = gradients(as_written_some, (queries, patches), blocks)
    for name, value in gradients(some, (queries, patches), blocks).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-4), name


def test_a_third_as_much_is_kept_for_the_backward_pass():
    def kept(function) -> int:
        sizes = {}
        inputs, blocks = example()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            logits = function(*inputs, blocks)
        return sum(sizes.values()) if logits.requires_grad else 0

    assert 0 < kept(mask_logits) < 0.36 * kept(as_written)


def test_a_layer_that_was_wrapped_is_not_passed_by():
    class Adapted(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x

    inputs, blocks = example()
    before = mask_logits(*inputs, blocks)
    blocks[1].conv2.__class__ = Adapted
    after = mask_logits(*inputs, blocks)
    assert relative_error(after, as_written(*inputs, blocks)) < PRECISE
    assert relative_error(after, before) > 0.01


@pytest.mark.parametrize('layer', ['conv1', 'conv2', 'norm'])
def test_what_hooks_do_to_a_layer_is_not_passed_by(layer):
    inputs, blocks = example()
    before = mask_logits(*inputs, blocks)
    prune.l1_unstructured(blocks[0].get_submodule(layer), 'weight', amount=0.5)
    with torch.no_grad():
        blocks[0].get_submodule(layer).weight_orig.mul_(3)
    after = mask_logits(*inputs, blocks)
    # conv1's weight is read, not its output: pruning sets it anew with each call of the layer
    assert layer == 'conv1' or relative_error(after, before) > 0.01
    assert relative_error(after, as_written(*inputs, blocks)) < PRECISE


def test_the_module_may_be_wrapped_as_a_whole():
    inputs, blocks = example()
    expected = mask_logits(*inputs, blocks)
    holder = nn.ModuleDict(dict(linear=nn.Linear(2, 2), upscale=blocks))
    config = LoraConfig(target_modules=['linear'], modules_to_save=['upscale'])
    wrapper = get_peft_model(holder, config).base_model.model['upscale']
    assert type(wrapper) is not Upscale
    assert torch.equal(wrapper(*inputs), expected)


def test_a_traced_module_is_plain():
    inputs, blocks = example()
    traced = torch.jit.trace(blocks, inputs)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    assert relative_error(traced(*inputs), mask_logits(*inputs, blocks)) < PRECISE


def test_norms_that_autocast_makes_fp32_do_not_mix_precisions(monkeypatch):
    """On a GPU, native_layer_norm is among the functions whose result autocast makes fp32; on a CPU it is not."""
    norm = torch.native_layer_norm

    def as_on_a_gpu(x, shape, scale, shift, eps):
        if torch.is_autocast_enabled('cpu'):
            x, scale, shift = x.float(), scale.float(), shift.float()
        return norm(x, shape, scale, shift, eps)

    monkeypatch.setattr(torch, 'native_layer_norm', as_on_a_gpu)
    inputs, blocks = example()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        given = gradients(mask_logits, inputs, blocks)
    assert all(value.isfinite().all() for value in given.values())


def test_the_lower_precision_of_autocast_is_kept():
    inputs, blocks = example()
    expected = gradients(as_written, inputs, blocks)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        given = gradients(mask_logits, inputs, blocks)
    assert given['logits'].dtype == torch.bfloat16
    for name, value in expected.items():
        assert relative_error(given[name].float(), value) < 0.05, name
