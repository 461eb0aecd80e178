"""Views that are drawn once and repeat, in an order that depends on the position alone."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from mmseg.registry import DATA_SAMPLERS

from mmseg_eomt.data.fixed_views import FixedViews, ViewSampler


class _Images(torch.utils.data.Dataset):
    """Each item draws from all generators."""

    def __init__(self) -> None:
        self.metainfo = dict(classes=('a', 'b'))

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple:
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def test_a_view_is_the_same_whenever_it_is_asked_for_and_leaves_other_draws_alone():
    views = FixedViews(_Images(), views=3)
    first = {(index, view): views[index, view] for view in range(3) for index in range(5)}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    again = {item: views[item] for item in reversed(first)}

    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert again == first
    assert len({drawn for sample in first.values() for drawn in sample[1:]}) == 3 * 15
    assert FixedViews(_Images(), views=3, seed=1)[0, 0] != first[0, 0]
    assert views.metainfo == dict(classes=('a', 'b'))
    with pytest.raises(ValueError, match='views must be at least 1, got 0'):
        FixedViews(_Images(), views=0)


def test_an_endless_sampler_shows_each_image_in_one_view_an_epoch():
    dataset = FixedViews(_Images(), views=3)
    plain = DATA_SAMPLERS.build(dict(type='InfiniteSampler', dataset=dataset, seed=0))
    items = [item for item, _ in zip(ViewSampler(dataset, dict(type='InfiniteSampler'), seed=0), range(20))]

    assert [index for index, _ in items] == [index for index, _ in zip(plain, range(20))]
    assert [view for _, view in items] == [0] * 5 + [1] * 5 + [2] * 5 + [0] * 5
    assert Counter(items[:15]) == Counter((index, view) for index in range(5) for view in range(3))


@pytest.mark.parametrize('rank', [0, 1])
def test_processes_share_the_views_of_an_epoch(rank, monkeypatch):
    for module in ('mmengine.dataset.sampler', 'mmseg_eomt.data.fixed_views'):
        monkeypatch.setattr(f'{module}.get_dist_info', lambda: (rank, 2))
    items = [item for item, _ in zip(ViewSampler(FixedViews(_Images(), 2), dict(type='InfiniteSampler'), 0), range(5))]
    assert [view for _, view in items] == ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])[rank]


def test_a_sampler_of_epochs_shows_the_view_of_its_epoch():
    sampler = ViewSampler(FixedViews(_Images(), views=2), dict(type='DefaultSampler', shuffle=True), seed=0)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        items = list(sampler)
        assert sorted(items) == [(index, epoch % 2) for index in range(5)]
        assert items != sorted(items)
    assert len(sampler) == 5
