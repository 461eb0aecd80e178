"""What the configs of datasets say before the data is read: pipelines, classes, the number of images."""

import copy
from collections.abc import Mapping
from typing import Any

from mmseg.registry import DATASETS

from mmseg_eomt.data.missing import explain_missing_data


def pipeline_of(dataset: Mapping[str, Any]) -> list:
    """A copy of the pipeline of a dataset's config, or of the first one that it wraps.

    Raises:
        ValueError: If there is none.
    """
    while 'pipeline' not in dataset:
        inner = dataset['datasets'][0] if 'datasets' in dataset else dataset.get('dataset')
        if not inner:
            raise ValueError(f'The config of {dataset.get("type")} says no pipeline, which prepares the images.')
        dataset = inner
    return copy.deepcopy(dataset['pipeline'])


def set_pipeline(dataset: dict[str, Any], pipeline: list) -> None:
    """Let a dataset's config, or all that it wraps, have another pipeline."""
    pending = [dataset]
    while pending:
        dataset = pending.pop()
        if 'pipeline' in dataset:
            dataset['pipeline'] = pipeline
        else:
            pending += [*(dataset.get('datasets') or ()), *([dataset['dataset']] if 'dataset' in dataset else [])]


def class_of(dataset: Mapping[str, Any]) -> type | None:
    """The class of a dataset's config; None if it says none."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def metainfo_of(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and palette of a dataset, whose files need not be there."""
    found = DATASETS.build(dict(copy.deepcopy(dict(dataset)), lazy_init=True)).metainfo
    return {name: found[name] for name in ('classes', 'palette') if found.get(name) is not None}


def build_dataset(dataset: Mapping[str, Any]) -> Any:
    """The dataset of a config; it has images.

    Raises:
        ValueError: If there are none, or the dataset cannot be built.
        FileNotFoundError: If a folder or list that the config names is missing.
    """
    try:
        built = DATASETS.build(copy.deepcopy(dict(dataset)))
    except (AssertionError, ValueError, OSError) as error:
        explain_missing_data(dict(dataset=dataset), error)
        raise ValueError(str(error)) from error
    if not len(built):
        explain_missing_data(dict(dataset=dataset), ValueError())
        raise ValueError(f'{dataset.get("type")} finds no image.')
    return built
