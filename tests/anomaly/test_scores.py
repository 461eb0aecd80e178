"""Anomaly scores: against the reference, and against their formulas written out pixel by pixel."""

import math

import pytest
import torch
from conftest import reference, relative_error

from mmseg_eomt.anomaly.scores import NAMES, OF_CLASSES, Score, ScoreChannels, parse_scores
from mmseg_eomt.models.semantic_inference import pixel_scores

TINY = 1e-6


@pytest.fixture(scope='module')
def given() -> dict:
    return reference('anomaly.pt')['rba']


def channels_of(
    names: list[str], class_logits: torch.Tensor, masks: torch.Tensor, num_classes: int, query_tolerance: float = 0.0
) -> torch.Tensor:
    """Score maps (B, E, h, w) in the size of the mask logits (B, Q, h, w), as a model has them of an image."""
    channels = ScoreChannels(names, num_classes)
    weights = torch.cat((class_logits.softmax(-1)[..., :num_classes], channels.weights(class_logits)), dim=-1)
    size = masks.shape[-2:]
    return channels.maps(pixel_scores(masks, weights, size, size, query_tolerance))


def example(negative: bool = False) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Class logits (2, Q, K + 1 or 2), mask logits (2, Q, h, w), K."""
    return 2 * torch.randn(2, 9, 7 if negative else 6), torch.randn(2, 9, 4, 5), 5


def test_scores_equal_the_reference(given):
    masks, size = given['mask_logits'], given['mask_logits'].shape[-2:]
    known = pixel_scores(masks, given['class_logits'].softmax(-1)[..., :-1], size, size)
    assert (known - given['pixel_scores']).abs().max() < TINY
    for name, expected in given['scores'].items():
        if name in OF_CLASSES:
            assert (OF_CLASSES[name](given['pixel_scores']) - expected).abs().max() < TINY, name
    names = list(given['scores'])
    maps = channels_of(names, given['class_logits'], masks, known.shape[1])
    for i, name in enumerate(names):
        assert relative_error(maps[:, i], given['scores'][name]) < TINY, name  # sums of up to 8


def test_scores_of_classes_equal_their_formulas():
    class_logits, masks, num_classes = example()
    scores = torch.einsum('bqk,bqhw->bkhw', class_logits.softmax(-1)[..., :num_classes], masks.sigmoid())
    pixel = scores[1, :, 2, 3].tolist()
    total = sum(pixel)
    assert total > 1  # overlapping masks
    expected = dict(
        rba=-sum(map(math.tanh, pixel)),
        rba_sum=-total,
        max=1 - max(pixel),
        msp=1 - max(pixel) / total,
        entropy=-sum(score / total * math.log(score / total) for score in pixel),
        energy=-math.log(sum(map(math.exp, pixel))),
    )
    assert expected.keys() == OF_CLASSES.keys()
    for name, value in expected.items():
        assert OF_CLASSES[name](scores)[1, 2, 3].item() == pytest.approx(value, abs=1e-5), name


def test_what_lacks_to_a_sum_of_1_is_no_object():
    scores = torch.tensor([0.2, 0.1, 0.0])[:, None, None]
    expected = -sum(share * math.log(share) for share in (0.2, 0.1, 0.7))
    assert OF_CLASSES['entropy'](scores).item() == pytest.approx(expected)
    assert OF_CLASSES['msp'](scores).item() == pytest.approx(0.8)


def test_a_pixel_of_no_class_scores_0_in_rba_and_1_in_max_and_msp():
    nothing = torch.zeros(4, 2, 2)
    for name, expected in dict(rba=0, rba_sum=0, max=1, msp=1, entropy=0, energy=-math.log(4)).items():
        assert torch.allclose(OF_CLASSES[name](nothing), torch.tensor(float(expected))), name


@pytest.mark.parametrize('negative', [False, True])
def test_scores_of_queries_equal_their_formulas(negative):
    class_logits, masks, num_classes = example(negative)
    maps = dict(zip(('eam', 'void', 'uno'), channels_of(['eam', 'void', 'uno'], class_logits, masks, num_classes).unbind(1)))
    shares, mask = class_logits[1].softmax(-1).tolist(), masks[1, :, 2, 3].sigmoid().tolist()
    best = [max(share[:num_classes]) for share in shares]
    against = [share[num_classes] if negative else 0 for share in shares]
    not_negative = sum(m * (1 - a) for m, a in zip(mask, against))
    expected = dict(
        eam=1 - sum(m * b for m, b in zip(mask, best)),
        void=sum(m * share[-1] for m, share in zip(mask, shares)) / not_negative,
        uno=-sum(m * (b - a) for m, b, a in zip(mask, best, against)),
    )
    for name, value in expected.items():
        assert maps[name][1, 2, 3].item() == pytest.approx(value, abs=1e-5), name


def test_a_temperature_divides_class_logits_before_queries_are_summed():
    class_logits, masks, num_classes = example()
    names = [f'{name}@0.5' for name in NAMES]
    given = channels_of(names, class_logits, masks, num_classes)
    expected = channels_of(list(NAMES), 2 * class_logits, masks, num_classes)
    assert torch.allclose(given, expected, atol=1e-5)


def test_maps_come_in_the_order_that_is_asked_for():
    class_logits, masks, num_classes = example()
    names = ['uno', 'rba@2', 'max', 'eam@2', 'rba']
    together = channels_of(names, class_logits, masks, num_classes)
    for i, name in enumerate(names):
        assert torch.allclose(together[:, i], channels_of([name], class_logits, masks, num_classes)[:, 0]), name


@pytest.mark.parametrize(
    ('text', 'score'),
    [('rba', Score('rba')), ('rba@1', Score('rba')), ('eam@0.5', Score('eam', 0.5)), ('max@.75', Score('max', 0.75))],
)
def test_names_are_read_and_written(text, score):
    assert Score.parse(text) == score
    assert Score.parse(str(score)) == score


@pytest.mark.parametrize('text', ['rbaa', 'rba@0', 'rba@', 'rba@-1', 'rba@one', 'RbA', '', 'rba@1e3', 3, None])
def test_names_of_no_score_are_refused(text):
    with pytest.raises(
        ValueError, match='one of rba, rba_sum, max, msp, entropy, energy, eam, void, uno, with a temperature'
    ):
        Score.parse(text)


def test_a_list_of_scores_has_each_once_and_is_no_single_name():
    assert list(map(str, parse_scores(['rba', 'max', 'rba@1.0']))) == ['rba', 'max']
    with pytest.raises(ValueError, match=r"are a list of names, got 'rba'"):
        parse_scores('rba')


def test_a_sure_inlier_has_the_value_that_counts_are_shifted_by():
    num_classes = 5
    class_logits = torch.full((1, 1, num_classes + 1), -40.0)
    class_logits[..., 2] = 40
    sure = channels_of(list(NAMES), class_logits, torch.full((1, 1, 2, 2), 40.0), num_classes)
    for i, name in enumerate(NAMES):
        assert sure[0, i].mean().item() == pytest.approx(Score(name).inlier(num_classes), abs=TINY), name


def test_queries_that_are_skipped_change_a_sum_by_no_more_than_the_tolerance_allows():
    """A query of the negative class has a large weight in UNO, below 0."""
    class_logits, masks, num_classes = example(negative=True)
    class_logits[:, :4, num_classes] = 12
    class_logits[:, 4:6, -1] = 12
    names = ['rba_sum', 'max', 'eam', 'uno', 'void', 'rba@2']
    exact = channels_of(names, class_logits, masks, num_classes)
    for tolerance in (1e-3, 0.05):
        given = channels_of(names, class_logits, masks, num_classes, tolerance)
        assert (given - exact).abs().max() < num_classes * 9 * tolerance
    assert (exact[:, 3] > 0).any()
