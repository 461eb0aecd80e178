"""What a model's robustness is evaluated on: the domains that are found in a folder, and its own data corrupted."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmseg_eomt.configs import config_folder
from mmseg_eomt.data.dataset_configs import build_dataset, metainfo_of, pipeline_of, set_pipeline
from mmseg_eomt.domains.corruptions import KINDS, Corrupt
from mmseg_eomt.domains.datasets import DomainsDataset

OWN = 'own data'


@dataclass(frozen=True)
class Part:
    """A dataset to evaluate on.

    Attributes:
        name: Of the domain or kind of corruption; :data:`OWN`.
        dataset: Its config.
        severity: Of a corruption, 1 to 5; 0 for images as they are.
        images: Their number.
    """

    name: str
    dataset: dict[str, Any]
    severity: int
    images: int

    @property
    def metric(self) -> str:
        """The metric of the toolbox or ours that takes the dataset."""
        return 'DomainIoUMetric' if self.dataset['type'] in ('DomainsDataset', DomainsDataset) else 'IoUMetric'


def found_domains(data_root: str | Path) -> dict[str, dict[str, Any]]:
    """Configs of the domains' validation sets, or labelled test sets, whose folders are there, by their name.

    Args:
        data_root: What is ``data`` in the configs of ``_base_/domains``.
    """
    found = {}
    for path in sorted((config_folder() / '_base_' / 'domains').glob('*.py')):
        for variable, config in Config.fromfile(path).to_dict().items():
            name, _, split = variable.rpartition('_')
            config['data_root'] = root = os.path.join(data_root, os.path.relpath(config['data_root'], 'data'))
            folders = [os.path.join(root, folder) for folder in config.get('data_prefix', {}).values()]
            if split in ('val', 'test') and all(map(os.path.isdir, folders)):
                found[name] = config
    return found


class Plan:
    """What of a model is evaluated on which data, each image through the pipeline of the config's ``test_dataloader``.

    Args:
        config: Of the model.

    Attributes:
        parts: The own data first.
        notes: A sentence for each domain that cannot be evaluated.

    Raises:
        ValueError: If the config has no ``test_dataloader``, or its data is not there.
    """

    def __init__(self, config: Config) -> None:
        if not config.get('test_dataloader'):
            raise ValueError(f'{config.filename} has no test_dataloader: the model is compared with itself on that data.')
        self.own: dict[str, Any] = config.test_dataloader.dataset.to_dict()
        self.images = list_images(self.own)
        self.parts = [Part(OWN, self.own, 0, len(self.images))]
        self.notes: list[str] = []

    def add_domains(self, data_root: str | Path, names: Sequence[str] | None = None) -> None:
        """Add domains.

        Args:
            data_root: As of :func:`found_domains`.
            names: Of the domains. Default: all that are found and are not the own data.

        Raises:
            ValueError: If a domain that is named is not there.
        """
        found = found_domains(data_root)
        lost = [name for name in names or () if name not in found]
        if lost:
            there = ', '.join(found) or 'none'
            raise ValueError(f'{", ".join(lost)} cannot be found in {data_root}, which has these domains: {there}.')
        for name, config in found.items():
            if names is None or name in names:
                self._add_domain(name, dict(config, pipeline=pipeline_of(self.own)))

    def _add_domain(self, name: str, dataset: dict[str, Any]) -> None:
        try:
            classes, own = (list(metainfo_of(one).get('classes', ())) for one in (dataset, self.own))
            if classes != own:
                raise ValueError(f'its {len(classes)} classes are not the {len(own)} of the model')
            images = list_images(dataset)
        except (ValueError, OSError) as error:
            self.notes.append(f'{name} ({dataset["data_root"]}) was not evaluated: {error}')
            return
        if images != self.images:
            self.parts.append(Part(name, dataset, 0, len(images)))

    def add_corruptions(self, kinds: Sequence[str], severities: Sequence[int]) -> None:
        """Add the own data, corrupted.

        Args:
            kinds: Of the corruptions, or families of them.
            severities: 1 to 5.

        Raises:
            ValueError: If one is unknown, or the images are not read by ``LoadImageFromFile``.
        """
        pipeline = pipeline_of(self.own)
        places = [i for i, step in enumerate(pipeline, 1) if step['type'] == 'LoadImageFromFile']
        if not places:
            raise ValueError('The pipeline of test_dataloader has no LoadImageFromFile, behind which images are corrupted.')
        for name in kinds_of(kinds):
            for severity in sorted({*severities}):
                Corrupt(name, severity)  # or it says what there is
                dataset = copy.deepcopy(self.own)
                step = dict(type='Corrupt', kind=name, severity=severity)
                set_pipeline(dataset, [*pipeline[: places[0]], step, *pipeline[places[0] :]])
                self.parts.append(Part(name, dataset, severity, len(self.images)))


def kinds_of(names: Sequence[str]) -> list[str]:
    """Kinds of corruptions, given by themselves or by their families, in the order of :data:`KINDS`.

    Raises:
        ValueError: If one is unknown.
    """
    families = {kind.family for kind in KINDS.values()}
    unknown = [name for name in names if name not in KINDS and name not in families]
    if unknown:
        raise ValueError(
            f'{", ".join(unknown)} is no corruption: there are {", ".join(KINDS)}, and the families '
            f'{", ".join(sorted(families))}.'
        )
    return [name for name, kind in KINDS.items() if name in names or kind.family in names]


def list_images(dataset: Mapping[str, Any]) -> list[str]:
    """The images of a dataset's config, all of which have labels.

    Raises:
        ValueError: If there are none, or some have no label.
        FileNotFoundError: If a folder or list is missing.
    """
    built = build_dataset(dataset)
    parts = getattr(built, 'datasets', [built])
    samples = [part.get_data_info(i) for part in parts for i in range(len(part))]
    lost = [sample['seg_map_path'] for sample in samples if not os.path.isfile(sample.get('seg_map_path') or '')]
    if lost:
        raise ValueError(
            f'{len(lost)} of {len(samples)} labels are missing, such as {lost[0]} (tools/convert_domain.py makes those of '
            'Mapillary and Cityscapes)'
        )
    return [os.path.realpath(sample['img_path']) for sample in samples]
