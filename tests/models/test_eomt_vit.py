"""The backbone's sizes, tokens and refusals."""

import pytest
import torch
from conftest import SMALL_ARCH

from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.eomt_vit import EoMTViT


def small(**changes) -> EoMTViT:
    return EoMTViT(**{'arch': SMALL_ARCH, 'img_size': (64, 96), 'num_joint_blocks': 2, **changes})


@pytest.mark.parametrize('registers', [0, 4])
@pytest.mark.parametrize('size', [(64, 96), (64, 64), (48, 160)])
def test_gives_a_map_and_the_prefix_tokens(registers, size):
    outs = small(num_register_tokens=registers)(torch.randn(2, 3, *size))

    assert len(outs) == 1
    feature, prefix = outs[0]
    assert feature.shape == (2, 32, size[0] // 16, size[1] // 16)
    assert prefix.shape == (2, 1 + registers, 32)


def test_an_image_that_is_no_multiple_of_the_patch_size_is_padded_right_and_below():
    model, image = small(), torch.randn(1, 3, 50, 90)
    padded = torch.nn.functional.pad(image, (0, 6, 0, 14))

    for given, expected in zip(model(image)[0], model(padded)[0]):
        assert torch.equal(given, expected)


def test_without_joint_blocks_it_is_a_whole_vit_with_plain_normalised_maps():
    model = small(num_joint_blocks=0, out_indices=(1, -1))

    outs = model(torch.randn(1, 3, 64, 96))

    assert [out.shape for out in outs] == [(1, 32, 4, 6)] * 2
    assert outs[1].mean(1).abs().max() < 1e-5  # the last went through LayerNorm
    assert outs[0].mean(1).abs().max() > 1e-3


def test_earlier_maps_come_without_prefix_tokens():
    outs = small(out_indices=(0, 1))(torch.randn(1, 3, 64, 96))

    assert torch.is_tensor(outs[0])
    assert isinstance(outs[1], list)


def test_the_position_embedding_follows_the_image_size():
    model, image = small(), torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        model.pos_embed.copy_(torch.linspace(-1, 1, 6).repeat(4)[None, :, None].expand_as(model.pos_embed))
        for block in model.blocks:
            block.ls1.gamma.zero_(), block.ls2.gamma.zero_()
    at_own_size = model(image)[0][0]
    wider = model(torch.zeros(1, 3, 64, 192))[0][0]

    assert wider.shape[-1] == 2 * at_own_size.shape[-1]
    assert (wider.diff(dim=-1)[..., 1:-1].sign() == at_own_size.diff(dim=-1)[0, 0, 0, 0].sign()).all()


def test_the_giant_has_gated_mlps_and_the_published_sizes():
    giant = get_arch('giant')
    assert (giant.embed_dims, giant.num_layers, giant.num_heads) == (1536, 40, 24)
    with torch.device('meta'):
        block = giant.build_block()
    assert block.mlp.fc1.weight.shape == (2 * 4096, 1536)
    assert block.mlp.fc2.weight.shape == (1536, 4096)


def test_a_gated_model_runs_forward_and_backward():
    model = small(arch=dict(**SMALL_ARCH, mlp='swiglu', mlp_hidden_dims=48))
    model(torch.randn(1, 3, 64, 96))[0][0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(arch='huge'), "'giant', 'large', 'small'"),
        (dict(arch=dict(embed_dims=32)), 'num_heads'),
        (dict(arch=dict(**SMALL_ARCH, depth=3)), 'takes'),
        (dict(arch=dict(**SMALL_ARCH, mlp='relu')), "'gelu', 'gelu_tanh', 'quick_gelu', 'swiglu'"),
        (dict(arch=dict(**SMALL_ARCH, qkv_bias='kv')), "'qkv', 'qv' or ''"),
        (dict(arch=dict(embed_dims=36, num_layers=4, num_heads=6, rope_theta=100.0)), 'divisible by 4, got 6'),
        (dict(arch=dict(embed_dims=32, num_layers=4, num_heads=5)), 'must divide'),
        (dict(num_joint_blocks=4), 'from 0 to 3'),
        (dict(out_indices=(2,)), 'from -2 to 1'),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
