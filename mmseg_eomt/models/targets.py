"""Semantic label maps as masks, read at points without ever building the masks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class SemanticTargets:
    """A batch of label maps.

    Attributes:
        labels: (B, H, W), int32 class ids; ``num_classes`` where the pixel is ignored.
        present: (B, num_classes), True where the image has a pixel of the class: each such class is one target mask.
        num_invalid: Scalar, pixels whose id is neither a class nor ignored. It stays on the device, so that it can be
            checked where the matching waits for the device anyway.
        num_classes: K.
    """

    labels: Tensor
    present: Tensor
    num_invalid: Tensor
    num_classes: int

    @classmethod
    def from_label_maps(cls, gt_sem_seg: Tensor, num_classes: int, ignore_index: int) -> 'SemanticTargets':
        """Build from integer maps (B, H, W)."""
        ignored = gt_sem_seg == ignore_index
        invalid = ~ignored & ((gt_sem_seg < 0) | (gt_sem_seg >= num_classes))
        labels = gt_sem_seg.masked_fill(ignored | invalid, num_classes)
        present = labels.new_zeros(labels.shape[0], num_classes + 1, dtype=torch.bool)
        present.scatter_(1, labels.flatten(1), True)
        return cls(labels.int(), present[:, :num_classes], invalid.sum(), num_classes)

    def corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The four pixels around each point and their bilinear weights.

        Places outside the image count as ignored, as zero padding of a mask does.

        Args:
            points: (B, P, 2), x then y, from 0 to 1 across the image.

        Returns:
            Labels and weights, both (B, 4, P).
        """
        height, width = self.labels.shape[1:]
        scale = points.new_tensor((width, height))
        position = points * scale - 0.5
        low = position.floor()
        share = position - low
        low = low.long()
        images = torch.arange(len(points), device=points.device)
        labels, weights = [], []
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            label = self.labels[images[:, None], y.clamp(0, height - 1), x.clamp(0, width - 1)]
            labels.append(label.masked_fill(~inside, self.num_classes))
            weights.append((share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1]))
        return torch.stack(labels, 1).long(), torch.stack(weights, 1)

    def sample_all(self, points: Tensor) -> Tensor:
        """Every class's mask at points (B, P, 2), one set an image: (B, num_classes, P)."""
        labels, weights = self.corners(points)
        masks = weights.new_zeros(len(points), self.num_classes + 1, points.shape[1])
        for corner in range(4):
            masks.scatter_add_(1, labels[:, corner : corner + 1], weights[:, corner : corner + 1])
        return masks[:, : self.num_classes]

    def sample_each(self, images: Tensor, classes: Tensor, points: Tensor) -> Tensor:
        """One class's mask a row, at points (N, P, 2), for ``images`` and ``classes`` (N,): (N, P)."""
        masks = (self.labels[images] == classes.int()[:, None, None]).to(points)
        return sample_maps(masks[:, None], points).squeeze(1)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (N, C, h, w) at points (N, P, 2), x then y from 0 to 1: (N, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False).squeeze(3)
