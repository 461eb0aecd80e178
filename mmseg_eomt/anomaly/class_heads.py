"""Class heads for anomalies: cosine logits, and a class of what belongs to none."""

from torch import Tensor, nn


class NegativeClassHead(nn.Linear):
    """A linear class head with one more class, of outliers, between the classes and "no object"."""

    def __init__(self, embed_dims: int, num_classes: int) -> None:
        super().__init__(embed_dims, num_classes + 1)
        self.negative = nn.Linear(embed_dims, 1)

    def forward(self, queries: Tensor) -> Tensor:
        """Logits (…, K + 2)."""
        raise NotImplementedError


class CosineClassHead(nn.Linear):
    """Cosines between queries and classes as logits."""

    def __init__(self, embed_dims: int, num_classes: int, scale: float | None = 16.0) -> None:
        super().__init__(embed_dims, num_classes + 1)
