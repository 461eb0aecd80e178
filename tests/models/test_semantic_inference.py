"""Class scores of pixels, in strips and with queries left out."""

import pytest
import torch
import torch.nn.functional as F

from mmseg_eomt.models import graph_scores, semantic_inference
from mmseg_eomt.models.semantic_inference import pixel_scores


def probabilities(classes: torch.Tensor) -> torch.Tensor:
    return classes.softmax(-1)[..., :-1]


def whole(masks: torch.Tensor, classes: torch.Tensor, padded: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    masks = F.interpolate(masks, padded, mode='bilinear')[..., : size[0], : size[1]]
    return torch.einsum('bqhw,bqk->bkhw', masks.sigmoid(), probabilities(classes))


@pytest.mark.parametrize('elements', [1, 3000, 10**9])
@pytest.mark.parametrize(
    ('padded', 'size'),
    [
        ((48, 80), (48, 80)),
        ((48, 80), (37, 70)),  # an image that was padded
        ((48, 80), (3, 80)),
        ((50, 77), (50, 77)),  # a map of another stride: not whole pixels a row
        ((12, 20), (12, 20)),
    ],
)
def test_strips_give_the_scores_of_whole_masks(elements, padded, size, monkeypatch):
    monkeypatch.setattr(semantic_inference, 'STRIP_ELEMENTS', elements)
    masks, classes = 3 * torch.randn(2, 7, 12, 20), torch.randn(2, 7, 5)
    scores = pixel_scores(masks, probabilities(classes), padded, size)
    assert torch.allclose(scores, whole(masks, classes, padded, size), atol=1e-6)


@pytest.mark.parametrize('elements', [500, 10**4, 10**9])
@pytest.mark.parametrize(
    ('padded', 'size'),
    [((48, 80), (48, 80)), ((48, 80), (37, 70)), ((48, 77), (48, 77)), ((48, 77), (37, 70)), ((50, 77), (50, 77))],
)
def test_strips_of_a_graph_give_the_scores_of_whole_masks(elements, padded, size, monkeypatch):
    monkeypatch.setattr(graph_scores, 'STRIP_ELEMENTS', elements)
    masks, classes = 3 * torch.randn(2, 7, 12, 20), torch.randn(2, 7, 5)
    scores = graph_scores.graph_scores(masks, probabilities(classes), padded, size)
    assert torch.allclose(scores, whole(masks, classes, padded, size), atol=1e-6)


def test_scores_have_gradients_where_they_are_asked_for():
    masks, classes = torch.randn(1, 7, 12, 20, requires_grad=True), torch.randn(1, 7, 5)
    size = (48, 80)
    given = torch.autograd.grad(pixel_scores(masks, probabilities(classes), size, size)[:, 1].sum(), masks)[0]
    expected = torch.autograd.grad(whole(masks, classes, size, size)[:, 1].sum(), masks)[0]
    assert torch.allclose(given, expected, atol=1e-6)


def test_leaving_all_queries_out_gives_scores_of_zero():
    scores = pixel_scores(torch.randn(1, 5, 4, 4), torch.rand(1, 5, 2), (16, 16), (16, 16), query_tolerance=1.1)
    assert scores.shape == (1, 2, 16, 16)
    assert not scores.any()


@pytest.mark.parametrize('tolerance', [1e-3, 1e-2, 0.1])
def test_leaving_queries_out_changes_scores_by_no_more_than_the_bound(tolerance):
    masks, classes = 3 * torch.randn(2, 50, 12, 20), torch.randn(2, 50, 5)
    classes[:, 10:, -1] += torch.linspace(3, 12, 40)
    size = (48, 80)
    best = probabilities(classes).amax(-1)
    left_out = best.where(best < tolerance, 0).sum(1)
    scores = pixel_scores(masks, probabilities(classes), size, size, tolerance)
    change = (scores - whole(masks, classes, size, size)).abs().flatten(1).amax(1)
    assert (change > 0).all(), 'no query was left out'
    assert (change <= left_out + 1e-6).all()
    assert (left_out <= 50 * tolerance).all()
