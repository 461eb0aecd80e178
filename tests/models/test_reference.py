"""The public implementation's numbers, forward and backward."""

import pytest
import torch
from conftest import reference, relative_error

from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.models.losses import MaskClassificationLoss, SemanticTargets
from mmseg_eomt.weights.checkpoint import from_segmentor, parse_checkpoint, recognise, to_segmentor

TOLERANCE = 1e-4


@pytest.fixture(params=['eomt_dinov2_reg4_tiny.pt', 'eomt_dinov3_tiny.pt'])
def public(request) -> dict:
    return reference(request.param)


@pytest.fixture
def model(public: dict) -> tuple[EoMTViT, EoMTHead, torch.Tensor]:
    config = public['config']
    arch = dict(embed_dims=config['embed_dims'], num_layers=config['depth'], num_heads=config['num_heads'])
    if 'rope_theta' in config:
        arch.update(rope_theta=config['rope_theta'], norm_eps=config['layer_norm_eps'], qkv_bias='qv')
    joint = config['num_joint_blocks']
    backbone = EoMTViT(arch, config['img_size'], config['patch_size'], num_joint_blocks=joint)
    head = EoMTHead(config['num_classes'], arch, num_joint_blocks=joint, num_queries=config['num_queries'])
    weights = to_segmentor(parse_checkpoint(public['state_dict'], 'the reference').weights, joint)
    for module, part in ((backbone, 'backbone.'), (head, 'decode_head.')):
        module.load_state_dict({n.removeprefix(part): v for n, v in weights.items() if n.startswith(part)})
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
    given = {}
    for module, part in ((backbone, 'backbone'), (head, 'decode_head')):
        given.update({f'{part}.{name}': parameter.grad for name, parameter in module.named_parameters()})
    given = recognise(public['state_dict']).write(from_segmentor(given))
    assert set(given) == set(expected['grads'])
    for name, value in expected['grads'].items():
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
