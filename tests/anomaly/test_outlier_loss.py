"""The loss of outliers against the public implementation's numbers, and over several processes."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, environment, free_port, reference, relative_error

from mmseg_eomt.anomaly.losses import OutlierLoss

RBA = reference('anomaly.pt')['rba']
SCORES = {('nls', 'tanh'): 'rba', ('nls', 'none'): 'rba_sum', ('energy', 'tanh'): 'energy'}
KINDS = dict(squared_hinge='squared_hinge', binary_cross_entropy='bce')


def truth_of(case: dict) -> torch.Tensor:
    truth = case['outlier_masks'].clone()
    if case['kind'] == 'binary_cross_entropy':
        truth[truth == 255] = 0  # the public code's cross entropy takes ignored pixels for inliers
    return truth


def loss_of(case: dict, **options) -> OutlierLoss:
    score, kind = SCORES[case['target'], case['score_norm']], KINDS[case['kind']]
    return OutlierLoss(score, kind, case['inlier_max'], case['outlier_min'], **options)


def example(dtype: torch.dtype = torch.float32, images: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask logits, class probabilities and a truth with outliers in the first image alone."""
    masks = torch.randn(images, 5, 6, 8, dtype=dtype, requires_grad=True)
    weights = torch.rand(images, 5, 4, dtype=dtype).mul(0.3).requires_grad_()
    truth = torch.zeros(images, 24, 32, dtype=torch.int)
    truth[0, 4:12, 6:20] = 1
    truth[:, 20:] = 255
    return masks, weights, truth


@pytest.mark.parametrize('case', RBA['cases'], ids=range(len(RBA['cases'])))
def test_loss_and_gradients_are_those_of_the_public_implementation(case):
    masks, classes = (RBA[name].clone().requires_grad_() for name in ('mask_logits', 'class_logits'))
    loss = loss_of(case, align_corners=True)

    (losses,) = loss([masks], [classes.softmax(-1)[..., :-1]], truth_of(case))
    losses['loss_outlier'].backward()

    assert losses['loss_outlier'].item() == pytest.approx(case['loss'].item(), rel=1e-5, abs=1e-7)
    for own, expected in ((masks.grad, case['grad_mask']), (classes.grad, case['grad_class'])):
        assert relative_error(own, expected) < 1e-4 if expected.any() else not own.any()


@pytest.mark.parametrize('score', ['rba', 'rba_sum', 'max', 'energy'])
@pytest.mark.parametrize('kind', ['squared_hinge', 'bce'])
def test_gradients_are_those_of_finite_differences(score, kind):
    masks, weights, truth = example(torch.float64)
    loss = OutlierLoss(score, kind, inlier_max=-1.0, outlier_min=0.5)

    assert torch.autograd.gradcheck(
        lambda *inputs: loss([inputs[0]], [inputs[1]], truth)[0]['loss_outlier'], (masks, weights)
    )


def test_a_batch_without_outliers_counts_its_inliers_in_full():
    masks, weights, truth = example()
    truth[truth == 1] = 255
    scores = F.interpolate(OutlierLoss().scores(masks, weights)[:, None], truth.shape[1:], mode='bilinear').squeeze(1)
    (losses,) = OutlierLoss(inlier_max=-1.0)([masks], [weights], truth)

    assert torch.allclose(losses['loss_outlier'], (scores[truth == 0] + 1).relu().square().mean())
    assert torch.allclose(losses['inlier_score'], scores[truth == 0].mean()) and 'outlier_score' not in losses


def test_a_batch_without_any_pixel_gives_zero_that_is_joined_to_the_graph():
    masks, weights, truth = example()
    for kind in KINDS.values():
        (losses,) = OutlierLoss(kind=kind)([masks], [weights], torch.full_like(truth, 255))
        losses['loss_outlier'].backward()
        assert losses.keys() == {'loss_outlier'} and losses['loss_outlier'] == 0
        assert not masks.grad.any() and not weights.grad.any()


def test_padding_right_and_below_has_no_part_in_the_loss():
    masks, weights, truth = example()
    padded = torch.full((2, 24, 32), 255)
    padded[:, :18, :26] = truth[:, :18, :26]
    (whole,) = OutlierLoss()([masks], [weights], padded)
    (cropped,) = OutlierLoss()([masks], [weights], truth[:, :18, :26], (26 / 32, 18 / 24))
    assert whole.keys() == cropped.keys()
    for name, value in whole.items():
        assert torch.allclose(cropped[name], value, rtol=1e-6), name


def test_each_layer_has_its_loss_or_the_last_alone():
    masks, weights, truth = example()
    inputs = ([masks, masks.flip(1)], [weights, weights], truth)
    first, last = OutlierLoss(loss_weight=0.5)(*inputs)
    assert first.keys() == {'loss_outlier'} and last.keys() == {'loss_outlier', 'inlier_score', 'outlier_score'}
    assert first['loss_outlier'] == OutlierLoss()([masks], [weights], truth)[0]['loss_outlier'] / 2

    nothing, alone = OutlierLoss(layers='last')(*inputs)
    assert nothing == {} and alone['loss_outlier'] == 2 * last['loss_outlier']


def test_half_precision_around_it_changes_nothing():
    masks, weights, truth = example()
    (expected,) = OutlierLoss()([masks], [weights], truth)
    with torch.autocast('cpu', torch.bfloat16):
        (losses,) = OutlierLoss()([masks], [weights], truth)
    assert torch.equal(losses['loss_outlier'], expected['loss_outlier'])


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="score of OutlierLoss is one of rba, rba_sum, max, energy; got 'eam'"):
        OutlierLoss('eam')
    with pytest.raises(ValueError, match='inlier_max must not be above outlier_min'):
        OutlierLoss(inlier_max=1.0, outlier_min=0.0)


def gradients(loss: OutlierLoss, part: slice) -> dict[str, torch.Tensor]:
    """Losses and gradients of some of four images, of which the first alone has outliers."""
    torch.manual_seed(0)
    masks, weights, truth = example(images=4)
    (losses,) = loss([masks[part]], [weights[part]], truth[part])
    losses['loss_outlier'].backward()
    return {name: value.detach() for name, value in losses.items()} | dict(masks=masks.grad, weights=weights.grad)


def train_rank(rank: int, port: str, out: str) -> None:
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    parts = (slice(0, 1), slice(1, 4))  # of different sizes, and one without outliers
    torch.save([gradients(OutlierLoss(kind=kind), parts[rank]) for kind in KINDS.values()], f'{out}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    port, env = free_port(), environment(PYTHONPATH=f'{ROOT}:{ROOT / "tests"}:{Path(__file__).parent}')
    code = f'from test_outlier_loss import train_rank; train_rank({{}}, {port!r}, {str(tmp_path)!r})'
    ranks = [subprocess.Popen(['python', '-c', code.format(rank)], cwd=ROOT, env=env) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    ranks = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1)]
    for kind, *both in zip(KINDS.values(), *ranks):
        alone = gradients(OutlierLoss(kind=kind), slice(None))
        for name in ('loss_outlier', 'masks', 'weights'):  # as DistributedDataParallel averages them
            assert torch.allclose((both[0][name] + both[1][name]) / 2, alone[name], rtol=1e-5, atol=1e-8), name
        for name in ('inlier_score', 'outlier_score'):
            assert all(torch.allclose(rank[name], alone[name]) for rank in both), name
