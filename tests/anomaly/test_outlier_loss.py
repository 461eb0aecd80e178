"""The loss of outliers against the public implementation's numbers, and over several processes."""

import pytest
import torch
from conftest import reference, relative_error

from mmseg_eomt.anomaly.losses import OutlierLoss

RBA = reference('anomaly.pt')['rba']
SCORES = {('nls', 'tanh'): 'rba', ('nls', 'none'): 'rba_sum', ('energy', 'tanh'): 'energy'}
KINDS = dict(squared_hinge='squared_hinge', binary_cross_entropy='bce')


def inputs(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    masks, classes = (RBA[name].clone().requires_grad_() for name in ('mask_logits', 'class_logits'))
    truth = case['outlier_masks'].clone()
    if case['kind'] == 'binary_cross_entropy':
        truth[truth == 255] = 0  # the public code's cross entropy takes ignored pixels for inliers
    return masks, classes, truth


@pytest.mark.parametrize('case', RBA['cases'], ids=range(len(RBA['cases'])))
def test_loss_and_gradients_are_those_of_the_public_implementation(case):
    masks, classes, truth = inputs(case)
    loss = OutlierLoss(
        SCORES[case['target'], case['score_norm']],
        KINDS[case['kind']],
        case['inlier_max'],
        case['outlier_min'],
        align_corners=True,
    )

    (losses,) = loss([masks], [classes.softmax(-1)[..., :-1]], truth)
    losses['loss_outlier'].backward()

    assert losses['loss_outlier'].item() == pytest.approx(case['loss'].item(), rel=1e-5, abs=1e-7)
    for own, expected in ((masks.grad, case['grad_mask']), (classes.grad, case['grad_class'])):
        assert relative_error(own, expected) < 1e-4 if expected.any() else not own.any()
