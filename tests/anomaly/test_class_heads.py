"""Cosine logits, the angular margin on them, and the class of outliers."""

import math

import pytest
import torch
from conftest import SMALL_ARCH
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmseg_eomt.anomaly.class_heads import CosineClassHead, NegativeClassHead
from mmseg_eomt.anomaly.losses import MarginClassificationLoss, margin_cost
from mmseg_eomt.models.losses import MaskClassificationLoss, SemanticTargets

K = 6
SETTINGS = dict(
    num_classes=K,
    num_points=64,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    class_weight=2.0,
    mask_weight=5.0,
    dice_weight=5.0,
    no_object_weight=0.1,
)


def example() -> tuple[list, list, SemanticTargets]:
    masks = [torch.randn(2, 8, 16, 16) for _ in range(2)]
    logits = [(16 * torch.rand(2, 8, K + 1) - 8).requires_grad_() for _ in range(2)]
    return masks, logits, SemanticTargets.from_label_maps(torch.randint(0, 5, (2, 64, 64)), K, 255)


def margin_loss(margin: float, scale: float = 16.0) -> MarginClassificationLoss:
    loss = MarginClassificationLoss(margin, **SETTINGS)
    loss.scales = torch.full((K,), scale)
    return loss


def decode_head(**options) -> nn.Module:
    sizes = dict(num_queries=12, num_joint_blocks=2, num_points=64)
    return MODELS.build(dict(type='EoMTAnomalyHead', num_classes=K, arch=SMALL_ARCH, **sizes, **options))


def losses_of(head: nn.Module, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    return head.loss([torch.randn(len(labels), SMALL_ARCH['embed_dims'], 4, 4)], samples, None)


def test_cosines_depend_on_directions_alone_and_no_object_is_linear():
    head, queries = CosineClassHead(8, K, scale=10.0), torch.randn(3, 5, 8)
    logits = head(queries)

    assert logits.shape == (3, 5, K + 1) and logits[..., :K].abs().max() <= 10
    cosines = nn.functional.cosine_similarity(queries[..., None, :], head.weight[:K], dim=-1)
    assert torch.allclose(logits[..., :K], 10 * cosines, atol=1e-5)
    assert torch.allclose(head(3 * queries)[..., :K], logits[..., :K], atol=1e-5)
    assert torch.allclose(logits[..., K], queries @ head.weight[K] + head.bias[K], atol=1e-6)


def test_a_linear_head_predicts_as_before_but_for_its_biases():
    linear, norm, cosine = nn.Linear(32, K + 1), nn.LayerNorm(32), CosineClassHead(32, K, scale=None)
    queries = norm(torch.randn(2, 50, 32) * 7 + 3)

    values, line = cosine.from_linear(linear.weight, linear.bias, norm.weight, norm.bias)
    cosine.load_state_dict({**linear.state_dict(), **values})

    dropped = linear.bias[:K].abs().max()
    assert (cosine(queries) - linear(queries)).abs().max() <= dropped + 1e-4
    assert torch.allclose(cosine(queries)[..., :K], linear(queries)[..., :K] - linear.bias[:K], atol=1e-4)
    low, high = cosine.scales.min(), cosine.scales.max()
    assert f'scale {low:.3g} to {high:.3g}, biases up to {dropped:.3g} are dropped' in line


def test_half_precision_at_cosines_of_one_gives_finite_gradients():
    head, loss = CosineClassHead(8, K), margin_loss(0.2)
    with torch.no_grad():
        head.weight[1] = -head.weight[0]
    queries = head.weight[:2].detach().repeat(1, 4, 1).requires_grad_()  # cosines of 1 and -1
    matches = torch.tensor([[[0, 0, 0], [0, 1, 0], [0, 2, 1], [0, 3, 1]]])

    with torch.autocast('cpu', torch.bfloat16):
        logits = head(nn.Identity()(queries).bfloat16())
    assert logits.dtype == torch.float32
    loss.class_loss([logits], matches).sum().backward()

    for gradient in (queries.grad, head.weight.grad, head.bias.grad):
        assert gradient.isfinite().all() and gradient.any()
    assert gradient.abs().max() < 10 and queries.grad.abs().max() < 100


def test_the_margin_is_that_of_the_angle_and_its_gradient_that_of_finite_differences():
    margin = torch.tensor(0.3, dtype=torch.float64)
    angles = torch.linspace(0.1, math.pi - 0.31, 40, dtype=torch.float64)
    assert torch.allclose(angles.cos() - margin_cost(angles.cos(), margin), (angles + margin).cos(), atol=1e-5)

    all_angles = torch.linspace(0.01, math.pi - 0.01, 400, dtype=torch.float64)
    with_margin = all_angles.cos() - margin_cost(all_angles.cos(), margin)
    assert (with_margin.diff() < 0).all()  # also where angle and margin are above π

    cosines = torch.tensor([-0.99, -0.6, 0.0, 0.5, 0.9, 0.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda cosines: margin_cost(cosines, margin), cosines)


def test_the_class_losses_gradient_through_head_and_margin_is_that_of_finite_differences():
    head, loss = CosineClassHead(4, K).double(), margin_loss(0.4)
    queries = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    matches = torch.tensor([[[0, 1, 2], [0, 3, 0]]])

    def of(queries: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(head, dict(weight=weight), queries)
        return loss.class_loss([logits], matches)

    inputs = (queries, head.weight.detach().requires_grad_())
    of(*inputs).backward()
    for given in inputs:
        step = torch.randn_like(given)
        step *= 1e-3 / step.norm()
        moved = [[other + sign * step if other is given else other for other in inputs] for sign in (1, -1)]
        slope = (of(*moved[0]) - of(*moved[1])).item() / 2e-3
        assert slope == pytest.approx((given.grad * step).sum().item() * 1e3, rel=1e-2, abs=1e-3)


def test_without_margin_the_losses_are_those_of_the_usual_criterion_bit_for_bit():
    masks, logits, targets = example()
    gradients = []
    for loss in (MaskClassificationLoss(**SETTINGS), margin_loss(0.0)):
        torch.manual_seed(1)
        layers = loss(masks, logits, targets)
        total = sum(value for layer in layers for name, value in layer.items() if 'loss' in name)
        gradients.append((total, *torch.autograd.grad(total, logits)))
    assert all(torch.equal(own, usual) for usual, own in zip(*gradients))


def test_the_margin_changes_the_class_loss_of_matched_entries_alone():
    masks, logits, targets = example()
    usual, loss = MaskClassificationLoss(**SETTINGS), margin_loss(0.3)
    torch.manual_seed(1)
    matches = usual.match(masks, logits, targets, torch.ones(2))
    torch.manual_seed(1)
    assert torch.equal(loss.match(masks, logits, targets, torch.ones(2)), matches)

    expected = [layer.detach().clone() for layer in logits]
    for layer, of_layer in zip(expected, matches):
        for image, query, label in of_layer:
            angle = (layer[image, query, label] / 16).acos()
            layer[image, query, label] = 16 * (angle + 0.3).cos()
    assert torch.allclose(loss.class_loss(logits, matches), usual.class_loss(expected, matches), atol=1e-4)
    assert (loss.class_loss(logits, matches) > usual.class_loss(logits, matches)).all()


def test_a_head_with_a_margin_predicts_without_it():
    torch.manual_seed(0)
    with_margin = decode_head(cosine_head=dict(margin=0.4)).eval()
    without = decode_head(cosine_head=dict(margin=0.0)).eval()
    without.load_state_dict(with_margin.state_dict())
    features = [torch.randn(1, SMALL_ARCH['embed_dims'], 4, 4)]
    assert torch.equal(with_margin(features)[1][-1], without(features)[1][-1])
    assert 'class_head.scales' in with_margin.state_dict()
    assert not any(name.startswith('criterion') for name in with_margin.state_dict())


def test_a_step_with_a_cosine_head_reaches_its_weights_and_those_of_a_copy_that_peft_trains():
    from peft.utils import ModulesToSaveWrapper

    head = decode_head(cosine_head=dict(scale=12.0))
    head.class_head = ModulesToSaveWrapper(head.class_head, 'default')
    losses = losses_of(head, torch.randint(0, K, (2, 64, 64)))
    losses['loss_cls'].backward()
    copy = head.class_head.modules_to_save['default']
    assert copy.weight.grad.any() and head.criterion.scales is copy.scales


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match='scale of cosine_head is a number above 0'):
        decode_head(cosine_head=dict(scale=0.0))
    with pytest.raises(ValueError, match='margin of cosine_head is an angle from 0 to below π / 2'):
        decode_head(cosine_head=dict(margin=2.0))


def test_outliers_are_a_class_between_the_others_and_no_object():
    linear, head = nn.Linear(8, K + 1), NegativeClassHead(8, K)
    head.load_state_dict(linear.state_dict(), strict=False)
    queries = torch.randn(2, 5, 8)
    logits = head(queries)

    assert logits.shape == (2, 5, K + 2)
    known = logits[..., [*range(K), K + 1]]
    assert torch.allclose(known, linear(queries), atol=1e-6) and logits[..., K].abs().max() < 0.1


def test_the_target_of_outliers_is_their_class():
    head = decode_head(negative_class=True)
    labels = torch.randint(0, 3, (2, 64, 64))
    labels[0, 10:40, 10:40] = 254
    seen = []
    head.criterion.register_forward_hook(lambda module, inputs, losses: seen.append(inputs[2]))
    losses = losses_of(head, labels)

    assert seen[0].present[:, K].tolist() == [True, False] and torch.equal(seen[0].labels == K, labels == 254)
    assert losses['matched_queries'] == (4 + 3) / 2
    losses['loss_cls'].backward()
    assert head.class_head.negative.weight.grad.any()


def test_a_label_of_no_class_is_no_outlier():
    labels = torch.randint(0, 3, (2, 64, 64))
    labels[0, :8] = K
    with pytest.raises(ValueError, match='neither below num_classes'):
        losses_of(decode_head(negative_class=True), labels)
    with pytest.raises(ValueError, match=f'negative_class has the label {K} in training'):
        decode_head(negative_class=True, ignore_index=K)
