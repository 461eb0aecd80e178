"""Anomaly scores of a mask classification model: the higher, the less a pixel looks like any class.

S_k = Σ_q p_qk · m_q are a pixel's class scores, which ``predict`` returns: p the class probabilities of query q with "no
object" among them, m its mask probability. They are no logits: their sum may be anything from 0 to the number of queries.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def rba(scores: Tensor) -> Tensor:
    """−Σ_k tanh S_k: about −0.76 where one class is sure, 0 where none is. Source: RbA (Nayal et al., ICCV 2023)."""
    return -scores.tanh().sum(-3)


def rba_sum(scores: Tensor) -> Tensor:
    """−Σ_k S_k: RbA without the tanh. Source: public implementation of RbA, ``support.py``."""
    return -scores.sum(-3)


def max_score(scores: Tensor) -> Tensor:
    """1 − max_k S_k. Source: Mask2Anomaly (Rai et al., ICCV 2023)."""
    return 1 - scores.amax(-3)


def msp(scores: Tensor) -> Tensor:
    """1 − max_k S_k / max(Σ_k S_k, 1): the best class's share, of which what lacks to 1 is no class's."""
    return 1 - scores.amax(-3) / scores.sum(-3).clamp(min=1)


def entropy(scores: Tensor) -> Tensor:
    """Entropy in nats of S / max(Σ_k S_k, 1), with what lacks to 1 as one more class, "no object"."""
    total = scores.sum(-3)
    shares = scores / total.clamp(min=1).unsqueeze(-3)
    rest = (1 - total).clamp(min=0)
    return torch.special.entr(shares).sum(-3) + torch.special.entr(rest)


def energy(scores: Tensor) -> Tensor:
    """−log Σ_k exp S_k. Source: public implementation of RbA, ``support.py``."""
    return -scores.logsumexp(-3)


# from class scores (…, K, H, W) to a map (…, H, W)
OF_CLASSES: dict[str, Callable[[Tensor], Tensor]] = dict(
    rba=rba, rba_sum=rba_sum, max=max_score, msp=msp, entropy=entropy, energy=energy
)
OF_SHARES = ('msp', 'entropy')  # of them, those of a class's share, which logits below 0 have none of


@dataclass(frozen=True)
class QueryScore:
    """A score that is read from the queries: a sum of their masks with one weight each.

    Attributes:
        weight: From class probabilities (…, Q, K), that of "no object" (…, Q) and that of the negative class (…, Q), which
            is 0 where there is none, to weights (…, Q).
        finish: From their sum (…, H, W) and the class scores (…, K, H, W) to a map (…, H, W).
    """

    weight: Callable[[Tensor, Tensor, Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], Tensor]


# eam: 1 − Σ_q m_q · max_k p_qk. Source: EAM (Grcić et al., CVPRW 2023).
# void: the share of "no object", Σ_q m_q · p_q∅ / Σ_q m_q, with the negative class's part of the masks left out.
# uno: −Σ_q m_q · (max_k p_qk − p_q,negative). Source: UNO (Delić et al., 2024).
OF_QUERIES: dict[str, QueryScore] = dict(
    eam=QueryScore(lambda known, none, negative: known.amax(-1), lambda total, scores: 1 - total),
    void=QueryScore(
        lambda known, none, negative: none,
        lambda total, scores: total / (total + scores.sum(-3)).clamp(min=torch.finfo(total.dtype).tiny),
    ),
    uno=QueryScore(lambda known, none, negative: known.amax(-1) - negative, lambda total, scores: -total),
)
NAMES = (*OF_CLASSES, *OF_QUERIES)


@dataclass(frozen=True)
class Score:
    """A score by name, and the temperature that the class logits are divided by.

    Attributes:
        name: One of ``NAMES``.
        temperature: Of the softmax over class logits.
    """

    name: str
    temperature: float = 1.0

    @classmethod
    def parse(cls, text: str) -> 'Score':
        """Read ``'rba'``, or ``'rba@0.5'`` for a temperature of 0.5.

        Raises:
            ValueError: If there is no such score or the temperature is not above 0.
        """
        found = re.fullmatch(r'(\w+)(?:@(\d+(?:\.\d*)?|\.\d+))?', text) if isinstance(text, str) else None
        if found is None or found[1] not in NAMES or (found[2] and not float(found[2]) > 0):
            raise ValueError(
                f"An anomaly score is one of {', '.join(NAMES)}, with a temperature above 0 as in 'rba@0.5'; got {text!r}."
            )
        return cls(found[1], float(found[2] or 1))

    def __str__(self) -> str:
        return self.name if self.temperature == 1 else f'{self.name}@{self.temperature:g}'

    @property
    def needs_queries(self) -> bool:
        """Whether it cannot be computed from the class scores that a model predicts."""
        return self.name in OF_QUERIES or self.temperature != 1

    def inlier(self, num_classes: int) -> float:
        """Its value where a model is sure of one class: files and counts keep most digits where that is moved to 0."""
        sure = dict(rba=-math.tanh(1), rba_sum=-1.0, energy=-math.log(math.e + num_classes - 1), uno=-1.0)
        return sure.get(self.name, 0.0)


def parse_scores(names: Sequence[str]) -> list[Score]:
    """Read the names of scores, each once, in their order.

    Raises:
        ValueError: If one is no score, or ``names`` is a single name in place of a list.
    """
    if isinstance(names, str):
        raise ValueError(f'Anomaly scores are a list of names, got {names!r}.')
    return list(dict.fromkeys(map(Score.parse, names)))


class ScoreChannels:
    """The channels that scores need behind the class scores of a prediction, and the maps that are made of them.

    For each temperature but 1: K class scores. Then, for each score of queries, one channel. Being sums over queries as the
    class scores are, they go through strips, windows, flips and resizing with them.

    Args:
        names: Of the scores.
        num_classes: K.
    """

    def __init__(self, names: Sequence[str], num_classes: int) -> None:
        self.scores = parse_scores(names)
        self.num_classes = num_classes
        self.temperatures = sorted({score.temperature for score in self.scores} - {1.0})
        self.of_queries = [score for score in self.scores if score.name in OF_QUERIES]

    @property
    def number(self) -> int:
        """Of the channels behind the class scores."""
        return len(self.temperatures) * self.num_classes + len(self.of_queries)

    def weights(self, class_logits: Tensor) -> Tensor:
        """Weights of the queries' masks in each channel.

        Args:
            class_logits: (B, Q, K + 1), or (B, Q, K + 2) with a negative class before "no object".

        Returns:
            (B, Q, ``number``).
        """
        classes = [self._probabilities(class_logits, temperature)[0] for temperature in self.temperatures]
        queries = [
            OF_QUERIES[score.name].weight(*self._probabilities(class_logits, score.temperature))[..., None]
            for score in self.of_queries
        ]
        return torch.cat((class_logits[..., :0], *classes, *queries), dim=-1)

    def _probabilities(self, class_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Of the classes, of "no object" and of the negative class."""
        probabilities = (class_logits / temperature).softmax(-1)
        known, rest = probabilities[..., : self.num_classes], probabilities[..., self.num_classes :]
        return known, rest[..., -1], rest[..., :-1].sum(-1)

    def maps(self, channels: Tensor) -> Tensor:
        """Score maps (…, E, H, W), in the order of ``scores``, of a prediction's channels (…, K + ``number``, H, W)."""
        parts = channels.split((self.num_classes, channels.shape[-3] - self.num_classes), dim=-3)
        known, extra = parts[0], parts[1]
        of_classes = {1.0: known}
        for i, temperature in enumerate(self.temperatures):
            of_classes[temperature] = extra.narrow(-3, i * self.num_classes, self.num_classes)
        sums = extra.narrow(-3, len(self.temperatures) * self.num_classes, len(self.of_queries)).unbind(-3)
        of_queries = dict(zip(self.of_queries, sums))
        maps = []
        for score in self.scores:
            scores = of_classes[score.temperature]
            if score in of_queries:
                maps.append(OF_QUERIES[score.name].finish(of_queries[score], scores))
            else:
                maps.append(OF_CLASSES[score.name](scores))
        return torch.stack(maps, dim=-3)
