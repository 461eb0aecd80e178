"""What a training step keeps and waits for, and that the model compiles."""

import functools

import pytest
import torch
from conftest import SMALL_ARCH
from test_eomt_head import samples, small_segmentor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_eomt.models import layers, mask_module

DINOV3 = dict(SMALL_ARCH, rope_theta=100.0, rope_rescale=2.0, qkv_bias='qv', norm_eps=1e-5)
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim', 'unique_consecutive', 'is_nonzero'}


def step(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = samples(torch.randint(0, 5, (2, 64, 64), generator=generator))
    torch.manual_seed(seed)
    return model.train().loss(torch.randn(2, 3, 64, 64, generator=generator), labels)


@pytest.mark.parametrize('arch', [SMALL_ARCH, DINOV3])
def test_recomputation_gives_the_same_losses_and_gradients_and_keeps_less(arch):
    kept, losses, grads = [], [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = small_segmentor(head=dict(with_cp=with_cp, arch=arch), with_cp=with_cp, arch=arch)
        sizes = {}
        with saved_tensors_hooks(lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            losses.append(step(model))
        model.parse_losses(losses[-1])[0].backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_the_predictions_alone_are_recomputed_with_the_same_gradients():
    kept, grads = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = small_segmentor(head=dict(masks_with_cp=again))
        sizes = {}
        with saved_tensors_hooks(lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
            losses = step(model)
        model.parse_losses(losses)[0].backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.9 * kept[0]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_nothing_is_kept_below_the_first_trainable_parameter():
    model = small_segmentor(num_joint_blocks=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith('backbone.blocks.1') or name.startswith('decode_head')
    seen = {}
    for i, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: seen.update({i: out.requires_grad}))
    model.parse_losses(step(model))[0].backward()
    assert seen == {0: False, 1: True}


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a device: reading a value, and sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith(('index', '_index')) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8)
            for index in next((arg for arg in args[1:] if isinstance(arg, (list, tuple))), ())
        )
        if name in WAITING or by_mask:
            self.counted.append(name)
        return func(*args, **(kwargs or {}))


def test_a_training_step_waits_for_the_device_once(monkeypatch):
    """On a CPU, a transfer to the CPU is seen by the methods that ask for one, and the way of other devices is taken."""
    monkeypatch.setattr(mask_module, 'on_cpu', lambda tensor: False)
    model = small_segmentor(head=dict(num_queries=8))
    model.decode_head.set_mask_probs((0.5, 0.0))
    with Waits() as waits:
        for name in ('cpu', 'numpy', 'tolist', 'item', '__array__'):
            monkeypatch.setattr(torch.Tensor, name, counting(waits, getattr(torch.Tensor, name), name))
        losses = step(model)
        model.parse_losses(losses)[0].backward()
    monkeypatch.undo()
    assert waits.counted == ['cpu', 'numpy']  # of one array: on a device, the second finds it on the CPU already
    loss = losses['decode.loss_cls']
    with Waits() as waits:
        bool((loss > 0) & loss.nonzero().any())
        loss.view(1)[torch.tensor([True])]
    assert len(waits.counted) >= 3, 'the count does not see what it should'


def counting(waits: Waits, method, name: str):
    @functools.wraps(method)
    def counted(self, *args, **kwargs):
        waits.counted.append(name)
        return method(self, *args, **kwargs)

    return counted


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('arch', [SMALL_ARCH, DINOV3, dict(SMALL_ARCH, mlp='swiglu')])
def test_backbone_and_head_compile_without_a_graph_break(arch, training):
    model = small_segmentor(head=dict(arch=arch), arch=arch).train(training)
    model.decode_head.set_mask_probs((1.0, 0.0))  # no random numbers, which a compiled model draws its own way
    model.backbone.arch = model.decode_head.arch = type(model.backbone.arch)(
        **{**vars(model.backbone.arch), 'rope_rescale': None}
    )

    def predict(image: torch.Tensor) -> list[torch.Tensor]:
        masks, classes = model.decode_head(model.backbone(image))
        return masks + classes

    torch.compiler.reset()
    image = torch.randn(2, 3, 64, 64)
    with torch.set_grad_enabled(training):
        expected = predict(image)
        given = torch.compile(predict, fullgraph=True, backend='aot_eager')(image)
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(given, expected, strict=True))
    if training:
        sum((part**2).sum() for part in given).backward()
        assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_an_mlp_in_evaluation_computes_some_tokens_at_a_time_and_what_watches_it_sees_all(monkeypatch):
    mlp, x = layers.MLPS['gelu'](8, 32), torch.randn(2, 7, 8)
    with torch.enable_grad():
        expected = mlp(x).detach()
    monkeypatch.setattr(layers, 'HIDDEN_ELEMENTS', 3 * 32)
    assert torch.allclose(mlp(x), expected, atol=1e-6)
    seen = []
    mlp.fc1.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    assert torch.allclose(mlp(x), expected, atol=1e-6)
    assert torch.equal(seen[0], mlp.fc1(x))
