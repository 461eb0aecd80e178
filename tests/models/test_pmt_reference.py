"""The numbers of the public implementation of PMT, forward and backward."""

import pytest
import torch
from conftest import reference, relative_error

from mmseg_eomt.models import LateralViT, PMTHead
from mmseg_eomt.weights.pmt_formats import DECODER, PMT, PMT_DINOV3

TOLERANCE = 1e-4
FORMATS = dict(dinov2=PMT, dinov3=PMT_DINOV3)
DRAWN = 1.5664253  # found by search: one of DINOv2's training run
DINOV3 = dict(rope_theta=100.0, rope_rescale=2.0, norm_eps=1e-5, qkv_bias='qv')


@pytest.fixture(params=['dinov2', 'dinov3'])
def public(request) -> dict:
    return reference(f'pmt_{request.param}_tiny.pt')


@pytest.fixture
def model(public: dict) -> tuple[LateralViT, PMTHead, torch.Tensor]:
    config = public['config']
    arch = dict(embed_dims=config['embed_dims'], num_layers=config['depth'], num_heads=config['num_heads'])
    arch.update(DINOV3 if config['family'] == 'dinov3' else {})
    backbone = LateralViT(arch, config['img_size'], config['patch_size'], out_indices=config['interaction_indices'])
    sizes = dict(num_blocks=config['num_blocks'], mlp_hidden_dims=config['hidden_dims'], num_queries=config['num_queries'])
    head = PMTHead(config['num_classes'], arch, in_index=range(len(backbone.out_indices)), **sizes)
    weights = FORMATS[config['family']].read(public['state_dict'])
    head.load_state_dict({n.removeprefix(DECODER): v for n, v in weights.items() if n.startswith(DECODER)})
    vit = {n: v for n, v in weights.items() if not n.startswith((DECODER, 'unused.'))}
    assert set(backbone.load_state_dict(vit, strict=False).missing_keys) <= {'pos_grid'}
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    return backbone.requires_grad_(False), head, (public['image'] - mean) / std


def scaled_rope(grid: tuple[int, int], head_dim: int, factor: float) -> torch.Tensor:
    """Cosines and sines for coordinates from ``-factor`` to ``factor``."""
    axes = [(torch.arange(side) + 0.5) / side * 2 - 1 for side in grid]
    positions = factor * torch.cartesian_prod(*axes)
    periods = 100.0 ** (torch.arange(head_dim // 4) * 4 / head_dim)
    angles = (2 * torch.pi * positions[..., None] / periods).flatten(1)
    return torch.stack((angles.cos(), angles.sin()))


@pytest.mark.parametrize('mode', ['eval', 'train_masked'])
def test_logits_and_gradients_equal_the_public_implementations(public, model, mode):
    backbone, head, image = model
    expected = public[mode]
    training = mode == 'train_masked'
    backbone.train(training)  # of no effect
    head.train(training)

    feats = backbone(image)
    if training and len(feats[0]) == 2:  # the decoder's own rotary positions, with the factor that the recorded run drew
        rope = scaled_rope(feats[0][0].shape[-2:], head.arch.head_dims, DRAWN)
        feats = [[*feature, rope] for feature in feats]
    masks, classes = head(feats)

    assert len(masks) == len(expected['mask_logits']) == (len(head.blocks) + 1 if training else 1)
    for given, wanted in zip(masks + classes, expected['mask_logits'] + expected['class_logits']):
        assert given.shape == wanted.shape
        assert relative_error(given, wanted) < TOLERANCE

    probes = zip(masks + classes, public['probe_mask'][-len(masks) :] + public['probe_class'][-len(masks) :])
    loss = sum((logits * probe).mean() for logits, probe in probes)
    assert abs(loss.item() - expected['probe_loss'].item()) < TOLERANCE
    loss.backward()
    grads = {f'{DECODER}{name}': parameter.grad for name, parameter in head.named_parameters()}
    given = FORMATS[public['config']['family']].write(grads)
    assert set(given) == set(expected['grads'])
    for name, value in expected['grads'].items():
        assert relative_error(given[name], value) < TOLERANCE, name
    assert all(parameter.grad is None for parameter in backbone.parameters())
