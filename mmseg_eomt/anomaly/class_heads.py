"""Class heads for anomalies: cosine logits, and a class of what belongs to none."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_eomt.models.resize import exporting

DEFAULT_SCALE = 16.0
LEAST_SCALE = 1e-3  # of a class whose weights are zero: cosines are read from logits by dividing


class ClassHead(nn.Module):
    """What a linear class head of K + 1 rows is loaded into; the last row is "no object".

    It is no ``nn.Linear``: an adapter on one, or a layer of fewer bits in its place, would compute other logits.

    Args:
        embed_dims: Width D of the queries.
        num_classes: K.
    """

    def __init__(self, embed_dims: int, num_classes: int) -> None:
        super().__init__()
        linear = nn.Linear(embed_dims, num_classes + 1)
        self.weight, self.bias = linear.weight, linear.bias

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.weight) - 1

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f'embed_dims={self.weight.shape[1]}, num_classes={self.num_classes}'


class NegativeClassHead(ClassHead):
    """A linear class head with one more class, of outliers, between the classes and "no object".

    The new row starts small, so that a trained head goes on predicting nearly what it did: the class of outliers begins with
    a logit near 0.

    Args:
        embed_dims: Width D of the queries.
        num_classes: K, without the class of outliers.

    Source: UNO (Delić et al., 2024); there the row is part of one larger matrix.
    """

    def __init__(self, embed_dims: int, num_classes: int) -> None:
        super().__init__(embed_dims, num_classes)
        self.negative = nn.Linear(embed_dims, 1)
        nn.init.trunc_normal_(self.negative.weight, std=0.02 / embed_dims**0.5)
        nn.init.zeros_(self.negative.bias)

    def forward(self, queries: Tensor) -> Tensor:
        """Logits (…, K + 2) of queries (…, D): the classes, outliers, "no object"."""
        linear = F.linear(queries, self.weight, self.bias)
        return torch.cat((linear[..., :-1], self.negative(queries), linear[..., -1:]), dim=-1)

    def from_linear(self, *_: Tensor) -> tuple[dict[str, Tensor], str]:
        """What it takes from a linear head beside weight and bias, nothing, and a line for the log."""
        return {}, 'class_head.negative (the class of outliers)'


class CosineClassHead(ClassHead):
    """Cosines between queries and classes as logits, times a scale; "no object", which is no cluster, stays linear.

    ``weight`` (K + 1, D) and ``bias`` (K + 1) are called as those of a linear class head, which can be loaded. The first K
    biases are not used.

    Args:
        embed_dims: Width D of the queries.
        num_classes: K.
        scale: s, the largest logit of a class. For a class to reach a probability of p among K, it takes
            (K − 1) / K · log((K − 1) · p / (1 − p)): 7.1 for 19 classes and p = 0.99. None takes one for each class from the
            linear head that is loaded, so that predictions stay what they were except for its biases, and 16 where none is.
            Default: 16.

    Attributes:
        scales: Buffer (K,): of each class. In a checkpoint, it tells a cosine head from a linear one.

    Raises:
        ValueError: If the scale is not above 0.

    Source: NormFace (Wang et al., 2017) and ArcFace (Deng et al., CVPR 2019), for the cosines and the bound.
    """

    scales: Tensor

    def __init__(self, embed_dims: int, num_classes: int, scale: float | None = DEFAULT_SCALE) -> None:
        super().__init__(embed_dims, num_classes)
        if scale is not None and not scale > 0:
            raise ValueError(f'scale of cosine_head is a number above 0, or None for that of the linear head; got {scale}.')
        self.scale = scale
        self.register_buffer('scales', torch.full((num_classes,), float(scale or DEFAULT_SCALE)))

    def forward(self, queries: Tensor) -> Tensor:
        """Logits (…, K + 1) of queries (…, D), in the weights' type: under autocast too, in float32."""
        # an exported graph knows no autocast, and ONNX has no place for a part without it
        with nullcontext() if exporting() else torch.autocast(queries.device.type, enabled=False):
            exact = torch.promote_types(self.weight.dtype, torch.float32)
            queries, weight = queries.to(exact), self.weight.to(exact)
            cosines = F.normalize(queries, dim=-1) @ F.normalize(weight[:-1], dim=-1).T
            no_object = F.linear(queries, weight[-1:], self.bias[-1:].to(exact))
            return torch.cat((self.scales.to(exact) * cosines, no_object), dim=-1).to(self.weight.dtype)

    def from_linear(
        self, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor
    ) -> tuple[dict[str, Tensor], str]:
        """What it takes from a linear head beside weight and bias.

        A query comes out of a norm: its length is about √(Σγ² + Σβ²), and exactly so for γ = 1 and β = 0. With ‖w_k‖ times
        that as scales, a class's logits change by no more than its bias.

        Args:
            weight: Of the linear head, (K + 1, D).
            bias: Of the linear head, (K + 1).
            norm_weight: γ (D) of the norm that the queries come from.
            norm_bias: β (D) of it.

        Returns:
            ``scales``, and a line for the log.
        """
        scales = torch.full_like(self.scales, self.scale or DEFAULT_SCALE)
        if self.scale is None:
            length = (norm_weight.square().sum() + norm_bias.square().sum()).sqrt()
            scales = (weight[:-1].norm(dim=1) * length).clamp(min=LEAST_SCALE)
        spread = ' to '.join(dict.fromkeys(f'{scale:.3g}' for scale in (scales.min(), scales.max())))
        dropped = bias[:-1].abs().max()
        return dict(scales=scales), f'class_head linear → cosine, scale {spread}, biases up to {dropped:.3g} are dropped'
