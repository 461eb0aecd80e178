"""A fixed number of augmented views of each image, drawn once and then repeated."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmseg.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Draw random numbers of Python, NumPy and PyTorch (CPU) from a seed; outside they go on as if nothing was drawn.

    Args:
        seed: From 0 to 2³² - 1.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@DATASETS.register_module()
class FixedViews(Dataset):
    """A dataset whose images have a fixed number of augmented views each.

    The item ``(index, view)`` is the same each time, in any process: its pipeline draws random numbers from a seed of its
    own. :class:`ViewSampler` asks for one view after the other.

    Args:
        dataset: The dataset, or its config.
        views: Views of each image.
        seed: What the views are drawn from. Default: 0.

    Raises:
        ValueError: If ``views`` is below 1.
    """

    def __init__(self, dataset: Any, views: int, seed: int = 0) -> None:
        if views < 1:
            raise ValueError(f'views must be at least 1, got {views}.')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.views = views
        self.seed = seed

    @property
    def metainfo(self) -> dict[str, Any]:
        """The dataset's."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the list of images, where the dataset has not yet."""
        self.dataset.full_init()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """The sample of ``(index, view)``."""
        index, view = item
        seed = np.random.SeedSequence((self.seed, view, index)).generate_state(1)[0]
        with own_random_numbers(int(seed)):
            return self.dataset[index]


@DATA_SAMPLERS.register_module()
class ViewSampler(Sampler):
    """A sampler of :class:`FixedViews`: in epoch e, each image's view is e modulo the number of views.

    The order of the images is another sampler's. Where that never ends, as ``InfiniteSampler``, an epoch is as many items as
    there are images, those of all processes counted. So the view depends on the position alone, and a resumed run goes on
    with the next.

    Args:
        dataset: :class:`FixedViews`, or another with ``views``.
        sampler: Config of the sampler that orders the images.
        seed: Of that sampler. Default: None.
    """

    def __init__(self, dataset: Any, sampler: dict[str, Any], seed: int | None = None) -> None:
        self.num_images, self.views = len(dataset), dataset.views
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Of the other sampler."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of an image's index and its view."""
        rank, world_size = get_dist_info()
        for step, index in enumerate(self.sampler):
            epoch = self.epoch + (rank + step * world_size) // self.num_images
            yield index, epoch % self.views
