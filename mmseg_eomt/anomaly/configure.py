"""Ask a config's model for anomaly scores."""

import copy
from collections.abc import Sequence
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
    """A config whose model predicts some anomaly scores; one that does so already, or need not be asked, stays as it is.

    Scores of the class scores are read from what any segmentor predicts. For scores of queries, and for temperatures,
    :class:`EoMTSegmentor` or ``EncoderDecoder`` becomes :class:`.EoMTAnomalySegmentor`, and :class:`EoMTHead` becomes
    :class:`.EoMTAnomalyHead`: same weights, same class scores.

    Args:
        config: Of a model; it is not changed.
        names: Of the scores, as ``['rba', 'eam', 'rba@0.5']``.

    Returns:
        A copy.

    Raises:
        ValueError: If one is no score, or the segmentor or its head is of another type.
    """
    config = copy.deepcopy(config)
    needed = [str(score) for score in parse_scores(names) if score.needs_queries]
    if not needed:
        return config
    model, head = config.model, config.model.get('decode_head')
    model.type = _anomaly_type(model, (EncoderDecoder, EoMTSegmentor), EoMTAnomalySegmentor, 'model', needed)
    head.type = _anomaly_type(head, (EoMTHead,), EoMTAnomalyHead, 'model.decode_head', needed)
    head.anomaly_scores = list(dict.fromkeys([*head.get('anomaly_scores', ()), *needed]))
    return config


def _anomaly_type(part: Any, plain: tuple[type, ...], wanted: type, name: str, scores: list[str]) -> Any:
    """The type that predicts anomaly scores in place of a plain one."""
    given = part.get('type') if isinstance(part, dict) else None
    found = MODELS.get(given) if isinstance(given, str) else given
    if isinstance(found, type) and issubclass(found, wanted):
        return given
    if found not in plain:
        kinds = ' or '.join(kind.__name__ for kind in (*plain, wanted))
        raise ValueError(
            f"The anomaly scores {', '.join(scores)} need an EoMT's queries: {name} must be a {kinds}, got "
            f'{given or type(part).__name__}. Of any model there are {", ".join(OF_CLASSES)}.'
        )
    return wanted.__name__
