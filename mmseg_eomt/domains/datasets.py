"""Several domains as one dataset, and the domains whose layout the toolbox has no dataset for."""

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import ConcatDataset
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class DomainsDataset(ConcatDataset):
    """Datasets of several domains one after the other; each sample carries its domain for :class:`.DomainIoUMetric`.

    They have the same classes; the names and colours are the first one's. It trains on several domains, too.

    Args:
        domains: The config of each dataset by the name of its domain, such as
            ``dict(cityscapes=dict(type='CityscapesDataset', …), bdd100k=dict(type='BDD100KDataset', …))``.
        pipeline: Of the domains whose config says none. Default: none.
        test_mode: As of the toolbox's datasets, for all domains that do not say it. Default: False.
        lazy_init: Whether to list the files later. Default: False.

    Attributes:
        names: Of the domains, in order.

    Raises:
        ValueError: If there is no domain, or their classes differ.
    """

    def __init__(
        self,
        domains: Mapping[str, Mapping[str, Any]],
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if not domains:
            raise ValueError('DomainsDataset needs at least one domain, such as domains=dict(cityscapes=dict(…)).')
        self.names = tuple(domains)
        shared = dict(pipeline=list(pipeline), test_mode=test_mode, lazy_init=lazy_init)
        datasets = [DATASETS.build({**copy.deepcopy(shared), **config}) for config in domains.values()]
        classes = {name: list(dataset.metainfo.get('classes') or ()) for name, dataset in zip(self.names, datasets)}
        for name in self.names[1:]:
            if classes[name] != classes[self.names[0]]:
                raise ValueError(
                    f'The domains must have the same classes in the same order: {name} has {_shown(classes[name])}, and '
                    f'{self.names[0]} has {_shown(classes[self.names[0]])}. Map the labels (tools/convert_domain.py, '
                    'label_map), or evaluate the domain alone.'
                )
        others = sorted({key for dataset in datasets for key in dataset.metainfo} - {'classes'})
        super().__init__(datasets, lazy_init, ignore_keys=others)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """A sample through its pipeline, with the metadata ``domain``."""
        sample = super().__getitem__(idx)
        found = sample.get('data_samples', [])
        name = self.names[bisect_right(self.cumulative_sizes, idx % len(self))]
        for packed in found if isinstance(found, list) else [found]:  # a list for test-time augmentation
            packed.set_metainfo(dict(domain=name))
        return sample


def _shown(classes: list[str]) -> str:
    rest = ', …' if len(classes) > 3 else ''
    return f'{len(classes)} ({", ".join(classes[:3])}{rest})'


@DATASETS.register_module()
class UrbanSynDataset(CityscapesDataset):
    """UrbanSyn: images ``rgb/rgb_0001.png`` and labels ``ss/ss_0001.png`` of Cityscapes' train ids, 19 where there is none.

    Args:
        kwargs: As of ``CityscapesDataset``. ``data_prefix`` is that of the download by default.

    Source: Gómez et al., "All for One, and One for All: UrbanSyn Dataset" (2023); ysj9909/SoMA,
    ``tools/convert_datasets/urbansyn.py`` (19 becomes 255).
    """

    def __init__(self, **kwargs: Any) -> None:
        prefix = dict(img_path='rgb', seg_map_path='ss')
        super().__init__(**{'img_suffix': '.png', 'seg_map_suffix': '.png', 'data_prefix': prefix, **kwargs})

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """What the loader makes of the ids, with fewer classes too."""
        return {**(super().get_label_map(new_classes) or {}), 19: 255}

    def load_data_list(self) -> list[dict[str, Any]]:
        """Image and label of each frame: the names differ in their beginning."""
        samples = super().load_data_list()
        for sample in samples:
            label = Path(sample['seg_map_path'])
            sample['seg_map_path'] = str(label.with_name(f'ss_{label.name.removeprefix("rgb_")}'))
        return samples
