"""What an image's scores depend on beside a model's weights: a threshold of one setting is none of another."""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmseg_eomt.anomaly.scored_config import segmentor_settings

WITHOUT_EFFECT = ('LoadAnnotations', 'PackSegInputs')  # on the image


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


def settings_digest(config: Config, dataset: Mapping[str, Any]) -> str:
    """How images of a dataset are prepared, and cut into windows, in a few letters.

    Args:
        config: With ``model``.
        dataset: Config of the images, with their pipeline.
    """
    model = segmentor_settings(config)
    steps = [step for step in pipeline_of(dataset) if step['type'] not in WITHOUT_EFFECT]
    content = [steps, model.get('test_cfg'), model.get('data_preprocessor') or config.get('data_preprocessor')]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
