"""What a model's anomaly scores are evaluated on: published sets in some folders, held-out classes, and its own data."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmseg_eomt.anomaly.data.datasets import AnomalyDataset
from mmseg_eomt.anomaly.data.frames import find_presets
from mmseg_eomt.anomaly.data.held_out import HeldOutClassesDataset
from mmseg_eomt.anomaly.data.presets import preset_of
from mmseg_eomt.data.dataset_configs import build_dataset, class_of, metainfo_of, pipeline_of

CLASSES = 'classes'  # name of the part for the classes' mIoU


@dataclass
class Part:
    """A dataset to evaluate on.

    Attributes:
        name: Of a file, too.
        dataset: Its config.
        source: Where its images are from, for the reader.
        components: As of :class:`.AnomalyMetric`.
        images: Their number.
    """

    name: str
    dataset: dict[str, Any]
    source: str
    components: str | None = None
    images: int = 0


class Plan:
    """What of a model is evaluated on which data.

    Args:
        config: Of the model, with ``test_dataloader``: each image goes through the pipeline that is said there.

    Attributes:
        parts: The datasets, in the order they were found in.
        notes: A sentence for each that cannot be evaluated.

    Raises:
        ValueError: If the config has no ``test_dataloader``.
    """

    def __init__(self, config: Config) -> None:
        if not config.get('test_dataloader'):
            raise ValueError(f'{config.filename} has no test_dataloader, and its pipeline is needed to prepare the images.')
        self.config = config
        self.own = config.test_dataloader.dataset
        self.parts: list[Part] = []
        self.notes: list[str] = []

    def add_presets(self, roots: Sequence[str | Path], names: Sequence[str] = ()) -> None:
        """Add the published sets below some folders.

        Args:
            roots: The folders.
            names: Of the presets to evaluate. Default: all that are found and are for a model of as many classes.

        Raises:
            ValueError: If a preset that is named is not there, or a folder is missing.
        """
        missing = [str(root) for root in roots if not Path(root).is_dir()]
        if missing:
            raise ValueError(f'{", ".join(missing)} (--data-root) is no folder.')
        unique = {(one['preset'], Path(one['data_root']).resolve()): one for root in roots for one in find_presets(root)}
        found = list(unique.values())
        lost = sorted({*names} - {one['preset'] for one in found})
        if lost:
            there = ', '.join(sorted({one['preset'] for one in found})) or 'no published set'
            raise ValueError(f'{", ".join(lost)} cannot be found below {", ".join(map(str, roots))}: there is {there}.')
        for one in found:
            if not names or one['preset'] in names:
                self._add_preset(one, bool(names))

    def _add_preset(self, found: dict[str, Any], named: bool) -> None:
        name, root, meta = found['preset'], found['data_root'], self._metainfo
        if 'classes' in meta and len(meta['classes']) != found['num_classes'] and not named:
            self.notes.append(
                f'{name} ({root}) is for models of its own {found["num_classes"]} classes, and this one has '
                f'{len(meta["classes"])}: skipped, unless --presets names it.'
            )
            return
        dataset = dict(type=AnomalyDataset.__name__, preset=name, data_root=root, metainfo=meta, pipeline=self._pipeline)
        self._add(Part(name, dataset, root, preset_of(name).components))

    def add_own(self, anomaly_classes: Sequence[str] = ()) -> None:
        """Add the config's own test data: if it is of anomalies, or with classes of it that the model was trained without.

        Args:
            anomaly_classes: Their names. Default: those that the config says.

        Raises:
            ValueError: If classes are named and the data cannot hold them out, or the model knows them.
        """
        own = copy.deepcopy(self.own)
        kind = class_of(own)
        if anomaly_classes:
            own = self._held_out(own, list(anomaly_classes))
        elif kind is HeldOutClassesDataset:
            own['split'] = 'anomaly'
        if anomaly_classes or kind is HeldOutClassesDataset:
            held_out = list(own['anomaly_classes'])
            self._add(Part(f'held_out_{"_".join(held_out)}', own, f'test_dataloader without {", ".join(held_out)}'))
        elif kind is AnomalyDataset:
            preset = preset_of(own['preset'])
            self._add(Part(preset.name, own, str(own.get('data_root')), preset.components))

    def _held_out(self, own: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """The config's dataset with classes of it as anomalies."""
        kind = class_of(own)
        if kind is AnomalyDataset or 'datasets' in own or ('dataset' in own and kind is not HeldOutClassesDataset):
            raise ValueError(
                f'--anomaly-classes needs a labelled dataset in test_dataloader, got {own.get("type")}: set '
                'test_dataloader.dataset to a HeldOutClassesDataset.'
            )
        if kind is not HeldOutClassesDataset:
            inner = {name: value for name, value in own.items() if name not in ('metainfo', 'pipeline')}
            own = dict(type=HeldOutClassesDataset.__name__, dataset=inner, pipeline=self._pipeline)
        own.update(anomaly_classes=names, split='anomaly')
        remaining, known = metainfo_of(own).get('classes', ()), self._metainfo.get('classes', ())
        if list(remaining) != list(known):
            raise ValueError(
                f'The model is of the classes {", ".join(known)}, and without {", ".join(names)} those of its data are '
                f'{", ".join(remaining)}: train it without the classes to find (HeldOutClassesDataset).'
            )
        return own

    def add_classes(self) -> None:
        """Add the config's own labelled data, for the mIoU."""
        for name in ('test_dataloader', 'val_dataloader'):
            dataset = copy.deepcopy((self.config.get(name) or {}).get('dataset') or {})
            kind = class_of(dataset)
            if kind is None or kind is AnomalyDataset:
                continue
            if kind is HeldOutClassesDataset:
                dataset['split'] = 'train'
            where = f'{name} ({dataset["type"]}'
            where += f', {dataset["data_root"]})' if dataset.get('data_root') else ')'
            self._add(Part(CLASSES, dataset, where), 'mIoU')
            return
        self.notes.append('mIoU was not evaluated: the config has no labelled data of its classes.')

    def _add(self, part: Part, what: str = '') -> None:
        """Add a dataset that is there; else a note."""
        part.name = part.name.replace('/', '_')
        taken = [other.name for other in self.parts]
        if part.name in taken:
            part.name = next(name for i in range(2, len(taken) + 3) if (name := f'{part.name}_{i}') not in taken)
        try:
            part.images = len(build_dataset(part.dataset))
        except (ValueError, OSError) as error:
            self.notes.append(f'{what or part.name} was not evaluated: {error}')
        else:
            self.parts.append(part)

    @property
    def _pipeline(self) -> list:
        """Of the config's own test data."""
        return pipeline_of(self.own)

    @property
    def _metainfo(self) -> dict[str, Any]:
        """Names and colours of the model's classes."""
        return metainfo_of(self.own)
