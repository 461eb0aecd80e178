"""The public implementation's numbers, forward and backward."""

import pytest
import torch
from conftest import reference, relative_error

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.losses import MaskClassificationLoss
from mmseg_eomt.models.targets import SemanticTargets

TOLERANCE = 1e-4


def split_public(state_dict: dict, num_layers: int, num_joint_blocks: int) -> tuple[dict, dict]:
    """The public checkpoint's entries as the backbone's and the head's."""
    backbone, head = {}, {}
    for name, value in state_dict.items():
        name = name.removeprefix('network.')
        if not name.startswith('encoder.'):
            head[name.replace('q.weight', 'query_embed.weight') if name.startswith('q.') else name] = value
            continue
        if not name.startswith('encoder.backbone.'):
            continue  # pixel mean and deviation
        name = name.removeprefix('encoder.backbone.')
        if name.startswith('blocks.'):
            _, index, rest = name.split('.', 2)
            in_head = int(index) - (num_layers - num_joint_blocks)
            target = backbone if in_head < 0 else head
            target[f'blocks.{index if in_head < 0 else in_head}.{rest}'] = value
        else:
            (head if name.startswith('norm.') else backbone)[name] = value
    return backbone, head


@pytest.fixture(scope='module')
def public() -> dict:
    return reference('eomt_dinov2_reg4_tiny.pt')


@pytest.fixture
def model(public: dict) -> tuple[EoMTViT, EoMTHead, torch.Tensor]:
    config = public['config']
    arch = dict(embed_dims=config['embed_dims'], num_layers=config['depth'], num_heads=config['num_heads'])
    joint = config['num_joint_blocks']
    backbone = EoMTViT(arch, config['img_size'], config['patch_size'], num_joint_blocks=joint)
    head = EoMTHead(config['num_classes'], arch, num_joint_blocks=joint, num_queries=config['num_queries'])
    for module, weights in zip((backbone, head), split_public(public['state_dict'], config['depth'], joint)):
        module.load_state_dict(weights)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    return backbone, head, (public['image'] - mean) / std


@pytest.mark.parametrize('mode', ['unmasked', 'masked'])
def test_logits_and_gradients_equal_the_public_implementations(public, model, mode):
    backbone, head, image = model
    expected = public[mode]
    head.train(mode == 'masked')

    masks, classes = head(backbone(image))

    assert len(masks) == len(expected['mask_logits']) == (1 if mode == 'unmasked' else 4)
    for given, wanted in zip(masks + classes, expected['mask_logits'] + expected['class_logits']):
        assert given.shape == wanted.shape
        assert relative_error(given, wanted) < TOLERANCE

    probes = zip(masks + classes, public['probe_mask'][-len(masks) :] + public['probe_class'][-len(masks) :])
    sum((logits * probe).mean() for logits, probe in probes).backward()
    grads = split_public(expected['grads'], public['config']['depth'], public['config']['num_joint_blocks'])
    for module, wanted in zip((backbone, head), grads):
        given = {name: parameter.grad for name, parameter in module.named_parameters()}
        assert set(given) == set(wanted)
        for name, value in wanted.items():
            assert relative_error(given[name], value) < TOLERANCE, name


def test_matching_losses_and_their_gradients_equal_the_public_implementations():
    data = reference('loss.pt')
    hyper = data['hyper']
    criterion = MaskClassificationLoss(
        hyper['num_classes'],
        hyper['num_points'],
        hyper['oversample_ratio'],
        hyper['importance_sample_ratio'],
        hyper['class_weight'],
        hyper['mask_weight'],
        hyper['dice_weight'],
        hyper['no_object_weight'],
    )
    targets = SemanticTargets.from_label_maps(data['gt_sem_seg'], hyper['num_classes'], hyper['ignore_index'])
    masks, classes = data['mask_logits'].requires_grad_(), data['class_logits'].requires_grad_()
    scale = torch.ones(2)

    matches = criterion.match([masks], [classes], targets, scale, torch.cat(data['match_points']))

    for image, (queries, indices) in enumerate(data['matched']):
        rows = matches[0][matches[0][:, 0] == image]
        assert torch.equal(rows[:, 1], queries)
        assert torch.equal(rows[:, 2], targets.present[image].nonzero()[:, 0][indices])

    loss_cls = criterion.class_loss([classes], matches)
    loss_mask, loss_dice = criterion.mask_losses([masks], matches, targets, scale, data['loss_points'][0])
    given = dict(loss_mask=loss_mask, loss_dice=loss_dice, loss_cross_entropy=loss_cls)
    for name, value in data['loss'].items():
        assert abs(given[name].item() - value.item()) < 1e-5, name
    total = hyper['class_weight'] * loss_cls + hyper['mask_weight'] * loss_mask + hyper['dice_weight'] * loss_dice
    assert abs(total.item() - data['total'].item()) < 1e-5
    total.backward()
    assert relative_error(masks.grad, data['grad_mask']) < 1e-5
    assert relative_error(classes.grad, data['grad_class']) < 1e-5
