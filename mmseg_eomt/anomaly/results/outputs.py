"""What a decode head predicts, split into the outputs of an exported graph: class scores and anomaly scores."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmseg_eomt.anomaly.head import EoMTAnomalyHead
from mmseg_eomt.anomaly.scores import OF_CLASSES, parse_scores


class GraphOutputs:
    """Class scores of a prediction, and the anomaly scores that are asked for.

    Args:
        head: The decode head.
        names: Of the anomaly scores.

    Attributes:
        names: As given, each once.
        num_classes: Channels of the class scores.

    Raises:
        ValueError: If a score needs the queries, and the head was not asked for it.
    """

    def __init__(self, head: nn.Module, names: Sequence[str]) -> None:
        self.scores = parse_scores(names)
        self.names = list(map(str, self.scores))
        self.channels = head.channels if isinstance(head, EoMTAnomalyHead) else None
        self.num_classes = self.channels.num_classes if self.channels else head.out_channels
        given = self.channels.scores if self.channels else []
        lacking = [str(score) for score in self.scores if score.needs_queries and score not in given]
        if lacking:
            raise ValueError(
                f'The head does not predict the anomaly scores {", ".join(lacking)}: make the config with '
                f'with_anomaly_scores(config, {lacking}).'
            )

    def split(self, predicted: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Class scores (B, K, H, W) and, if some are asked for, anomaly scores (B, E, H, W) of a prediction (B, C, H, W)."""
        extra = self.channels is not None and self.channels.number
        known = predicted[:, : self.num_classes] if extra else predicted
        if not self.scores:
            return known
        maps = {}
        if self.channels and any(score.needs_queries for score in self.scores):
            maps = dict(zip(self.channels.scores, self.channels.maps(predicted).unbind(-3)))
        chosen = [maps[score] if score in maps else OF_CLASSES[score.name](known) for score in self.scores]
        return known, torch.stack(chosen, dim=-3)
