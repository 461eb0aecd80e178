"""A config whose model predicts anomaly scores of its queries beside its classes."""

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any

from mmengine.config import Config
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.scores import OF_CLASSES, parse_scores
from mmseg_eomt.anomaly.segmentor import EoMTAnomalySegmentor
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.models.segmentor import EoMTSegmentor


def with_anomaly_scores(config: Config, names: Sequence[str]) -> Config:
    """A config whose model predicts the scores that cannot be computed from class scores.

    The model's weights stay what they are: a checkpoint of one is a checkpoint of the other.

    Args:
        config: Of any segmentor; it stays as it is. Its model may be wrapped (``model.module``).
        names: Of the scores, such as ``['rba', 'eam', 'rba@0.5']``. Scores of classes are computed from what any model
            predicts (:func:`.anomaly_maps`): with none else, the model is not changed.

    Returns:
        A copy, with ``EoMTAnomalySegmentor`` and ``EoMTAnomalyHead`` where they are needed.

    Raises:
        ValueError: If a score needs the queries, and the model is no EoMT or of a class of its own; or if there is no such
            score.
    """
    config = copy.deepcopy(config)
    needed = [str(score) for score in parse_scores(names) if score.needs_queries]
    model = segmentor_settings(config)
    head = model.get('decode_head')
    kind = class_of(head)
    if kind is not None and issubclass(kind, EoMTAnomalyHead):
        head['anomaly_scores'] = needed
    elif needed and kind is EoMTHead:
        head.update(type=EoMTAnomalyHead.__name__, anomaly_scores=needed)
    elif needed:
        given = head.get('type') if isinstance(head, MutableMapping) else head
        raise ValueError(
            f'The scores {", ".join(needed)} need the queries of an EoMT, and the decode head is {given}: give it the type '
            f'EoMTAnomalyHead, or ask for scores of the class scores: {", ".join(OF_CLASSES)}.'
        )
    if needed and class_of(model) in (EncoderDecoder, EoMTSegmentor):
        model['type'] = EoMTAnomalySegmentor.__name__
    elif needed and not issubclass(class_of(model) or object, EoMTAnomalySegmentor):
        raise ValueError(
            f'The scores {", ".join(needed)} need model.type EoMTAnomalySegmentor, got {model.get("type")}: let this class '
            'inherit from EoMTAnomalySegmentor.'
        )
    return config


def segmentor_settings(config: Config) -> Any:
    """The settings of the segmentor in a config, below whatever wraps it."""
    model = config.model
    while isinstance(model.get('module'), MutableMapping):
        model = model.module
    return model


def class_of(settings: Any) -> type | None:
    """The class that settings of a model or of a part of it are for, or None if they name none that is registered."""
    kind = settings.get('type') if isinstance(settings, MutableMapping) else None
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    return kind if isinstance(kind, type) else None
