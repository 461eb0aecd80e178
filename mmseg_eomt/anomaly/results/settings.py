"""What an image's scores depend on beside a model's weights: a threshold of one setting is none of another."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmseg_eomt.anomaly.scored_config import segmentor_settings
from mmseg_eomt.data.dataset_configs import pipeline_of

WITHOUT_EFFECT = ('LoadAnnotations', 'PackSegInputs')  # on the image


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
