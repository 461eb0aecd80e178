"""Mask classification: targets without mask tensors, one-to-one matching, and the losses of matched queries."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmseg_eomt.models.device import on_cpu


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

    def bilinear_corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The four pixels around each point and their bilinear weights.

        Positions outside the image count as ignored, as zero padding of a mask does.

        Args:
            points: (B, P, 2), x then y, from 0 to 1 across the image.

        Returns:
            Labels and weights, both (B, 4, P).
        """
        height, width = self.labels.shape[1:]
        scale = points.new_tensor((width, height))
        position = points * scale - 0.5
        low = position.floor()
        fraction = position - low
        low = low.long()
        images = torch.arange(len(points), device=points.device)
        labels, weights = [], []
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            label = self.labels[images[:, None], y.clamp(0, height - 1), x.clamp(0, width - 1)]
            labels.append(label.masked_fill(~inside, self.num_classes))
            weights.append(
                (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (fraction[..., 1] if dy else 1 - fraction[..., 1])
            )
        return torch.stack(labels, 1).long(), torch.stack(weights, 1)

    def sample_all(self, points: Tensor) -> Tensor:
        """Every class's mask at points (B, P, 2), one set per image: (B, num_classes, P)."""
        labels, weights = self.bilinear_corners(points)
        masks = weights.new_zeros(len(points), self.num_classes + 1, points.shape[1])
        for corner in range(4):
            masks.scatter_add_(1, labels[:, corner : corner + 1], weights[:, corner : corner + 1])
        return masks[:, : self.num_classes]

    def sample_each(self, images: Tensor, classes: Tensor, points: Tensor) -> Tensor:
        """One class's mask per row, at points (N, P, 2), for ``images`` and ``classes`` (N,): (N, P)."""
        masks = (self.labels[images] == classes.int()[:, None, None]).to(points)
        return sample_maps(masks[:, None], points).squeeze(1)


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (N, C, h, w) at points (N, P, 2), x then y from 0 to 1: (N, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False).squeeze(3)


PARALLEL_FROM = 2**20  # costs; fewer are solved sooner than threads are woken


def pairwise_costs(
    mask_logits: Tensor,
    class_logits: Tensor,
    masks: Tensor,
    mask_weight: float,
    dice_weight: float,
    class_weight: float,
) -> Tensor:
    """Cost of giving each query each class's mask.

    Args:
        mask_logits: Each query's mask at the sampled points, (B, Q, P).
        class_logits: (B, Q, K + 1); the last is "no object".
        masks: Each class's mask at the same points, (B, K, P), from 0 to 1.
        mask_weight: Weight of the binary cross entropy, averaged over the points.
        dice_weight: Weight of the dice term.
        class_weight: Weight of the negative class probability.

    Returns:
        Costs (B, Q, K).

    Source: Mask2Former (Cheng et al., CVPR 2022), section 3.3.
    """
    mask_logits, masks = mask_logits.float(), masks.transpose(1, 2)
    num_points = mask_logits.shape[-1]
    # BCE(x, t) = softplus(x) - x·t, summed over the points for all pairs by one product
    cross_entropy = (F.softplus(mask_logits).sum(-1, keepdim=True) - mask_logits @ masks) / num_points
    probability = mask_logits.sigmoid()
    overlap = 2 * (probability @ masks)
    area = probability.sum(-1)[..., None] + masks.sum(1)[:, None]
    dice = 1 - (overlap + 1) / (area + 1)
    class_cost = -class_logits.float().softmax(-1)[..., :-1]
    return mask_weight * cross_entropy + dice_weight * dice + class_weight * class_cost


def assign(costs: Tensor, targets: SemanticTargets) -> Tensor:
    """Hungarian matching of every layer and image, with one wait for the device.

    Args:
        costs: (L, B, Q, K), one matrix per layer and image.
        targets: The images' targets; only classes that are present take part.

    Returns:
        Matches (L, M, 3) on the device of ``costs``: image, query and class of each, M = Σ min(Q, classes present). Where a
        cost is not a number or infinite, the pair is matched last.

    Raises:
        ValueError: If a label map holds an id that is neither a class nor ignored.
    """
    present, num_costs = targets.present, costs.numel()
    # all that the CPU has to know, in one transfer: each waits for the device
    flat = torch.cat((costs.flatten(), present.flatten().to(costs), targets.num_invalid.to(costs)[None])).cpu().numpy()
    if flat[-1]:
        raise ValueError(
            f'{int(flat[-1])} pixels of gt_sem_seg hold an id that is neither below num_classes={targets.num_classes} nor '
            f'ignore_index: check num_classes of the head, the dataset and its reduce_zero_label against the label files.'
        )
    largest = np.finfo(flat.dtype).max
    matrices = np.nan_to_num(flat[:num_costs], nan=largest, posinf=largest, neginf=largest).reshape(costs.shape)
    classes = [row.nonzero()[0] for row in flat[num_costs:-1].reshape(present.shape)]
    solve = _pool().map if num_costs >= PARALLEL_FROM else map
    pairs = solve(linear_sum_assignment, (layer[i][:, classes[i]] for layer in matrices for i in range(len(classes))))
    matches = [
        np.stack((np.full_like(query, image), query, classes[image][target]), axis=1)
        for (query, target), image in zip(pairs, itertools.cycle(range(len(classes))))
    ]
    return torch.from_numpy(np.concatenate(matches)).view(len(matrices), -1, 3).to(costs.device)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor()


MASKS_AT_ONCE = 8  # whose candidate points and full-size targets are held on a CPU; eight times as many elsewhere


class MaskClassificationLoss(nn.Module):
    """Hungarian matching, then class cross entropy, mask cross entropy and dice, for every supervised layer.

    Args:
        num_classes: K, without "no object".
        num_points: Points a mask is compared at.
        oversample_ratio: Candidates drawn for each point of the mask losses.
        importance_sample_ratio: Fraction of the points taken where the prediction is least certain.
        class_weight: Weight of the class cross entropy.
        mask_weight: Weight of the mask cross entropy.
        dice_weight: Weight of the dice loss.
        no_object_weight: Weight of the class "no object" in the class cross entropy.

    Raises:
        ValueError: If the numbers of points are out of range.

    Source: Mask2Former, sections 3.2 and 3.3; public implementation ``training/mask_classification_loss.py``.
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
    ) -> None:
        super().__init__()
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                'num_points and oversample_ratio must be at least 1 and importance_sample_ratio from 0 to 1, got '
                f'{num_points}, {oversample_ratio} and {importance_sample_ratio}.'
            )
        self.num_classes = num_classes
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(
        self,
        mask_logits: list[Tensor],
        class_logits: list[Tensor],
        targets: SemanticTargets,
        extent: tuple[float, float] = (1.0, 1.0),
    ) -> list[dict[str, Tensor]]:
        """Weighted losses of each layer.

        Args:
            mask_logits: (B, Q, h, w) per layer.
            class_logits: (B, Q, K + 1) per layer.
            targets: The label maps.
            extent: Fraction of the maps' width and height that the image takes, where it was padded right and below.

        Returns:
            A dict per layer with scalars ``loss_cls``, ``loss_mask`` and ``loss_dice``. A batch without any labelled pixel
            gives mask losses of 0, still joined to the graph. The last dict holds ``matched_queries`` too, the mean number
            of an image's queries that have a mask to learn, the same for every layer; it is no loss, and lies on the CPU.
        """
        scale = mask_logits[0].new_tensor(extent, dtype=torch.float32)
        # sums over thousands of points overflow half precision
        with torch.autocast(scale.device.type, enabled=False):
            matches = self.match(mask_logits, class_logits, targets, scale)
            loss_cls = self.class_loss(class_logits, matches)
            loss_mask, loss_dice = self.mask_losses(mask_logits, matches, targets, scale)
        layers = [
            dict(
                loss_cls=self.class_weight * loss_cls[i],
                loss_mask=self.mask_weight * loss_mask[i],
                loss_dice=self.dice_weight * loss_dice[i],
            )
            for i in range(len(mask_logits))
        ]
        layers[-1]['matched_queries'] = torch.tensor(matches.shape[1] / len(mask_logits[0]))
        return layers

    @torch.no_grad()
    def match(
        self,
        mask_logits: list[Tensor],
        class_logits: list[Tensor],
        targets: SemanticTargets,
        scale: Tensor,
        points: Tensor | None = None,
    ) -> Tensor:
        """Matches (L, M, 3) as :func:`~mmseg_eomt.models.losses.assign` gives them.

        ``points`` (B, P, 2) replaces the random points, the same ones for every layer.
        """
        costs = []
        for masks, classes in zip(mask_logits, class_logits):
            drawn = torch.rand(len(masks), self.num_points, 2, device=masks.device) if points is None else points
            costs.append(
                pairwise_costs(
                    sample_maps(masks.float(), drawn * scale),
                    classes,
                    targets.sample_all(drawn),
                    self.mask_weight,
                    self.dice_weight,
                    self.class_weight,
                )
            )
        return assign(torch.stack(costs), targets)

    def class_loss(self, class_logits: list[Tensor], matches: Tensor) -> Tensor:
        """Unweighted class cross entropy of each layer, (L,): unmatched queries learn "no object"."""
        logits = torch.stack(class_logits).float()
        classes = logits.new_full(logits.shape[:3], logits.shape[-1] - 1, dtype=torch.long)
        layer = torch.arange(len(logits), device=logits.device)[:, None]
        classes[layer, matches[..., 0], matches[..., 1]] = matches[..., 2]
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight=self.class_weights, reduction='none')
        total_weight = self.class_weights[classes].flatten(1).sum(1)
        return loss.view(len(logits), -1).sum(1) / total_weight

    def mask_losses(
        self,
        mask_logits: list[Tensor],
        matches: Tensor,
        targets: SemanticTargets,
        scale: Tensor,
        points: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Unweighted mask cross entropy and dice of each layer, (L,) each, over the mean number of masks per process.

        ``points`` (L · M, P, 2) replaces the sampled points.
        """
        num_layers, num_masks = matches.shape[:2]
        mean_masks = scale.new_tensor(float(num_masks))
        all_reduce(mean_masks, 'mean')
        mean_masks = mean_masks.clamp(min=1)
        matched = torch.cat([masks[match[:, 0], match[:, 1]] for masks, match in zip(mask_logits, matches)]).float()
        if not num_masks:
            zero = matched.sum().expand(num_layers)
            return zero, zero
        images, classes = matches[..., 0].flatten(), matches[..., 2].flatten()
        at_once = MASKS_AT_ONCE * (1 if on_cpu(matched) else 8)
        placed = itertools.repeat(None) if points is None else points.split(at_once)
        rows = []
        # some masks at a time: their points outgrow the caches, and at once would take more memory than the model
        for some, image, label, place in zip(*(part.split(at_once) for part in (matched, images, classes)), placed):
            place = self.draw_points(some, scale) if place is None else place
            target = targets.sample_each(image, label, place)
            logits = sample_maps(some[:, None], place * scale).squeeze(1)  # (n, P)
            cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction='none').mean(1)
            probability = logits.sigmoid()
            overlap = 2 * (probability * target).sum(1)
            # the 1 above and below keeps masks without any pixel at the points defined, as in Mask2Former
            dice = 1 - (overlap + 1) / (probability.sum(1) + target.sum(1) + 1)
            rows.append(torch.stack((cross_entropy, dice)))
        cross_entropy, dice = torch.cat(rows, dim=1)
        per_layer = (num_layers, num_masks)
        return cross_entropy.view(per_layer).sum(1) / mean_masks, dice.view(per_layer).sum(1) / mean_masks

    @torch.no_grad()
    def draw_points(self, maps: Tensor, scale: Tensor) -> Tensor:
        """Points (N, P, 2) in the image, most of them where the logits of the maps (N, h, w) are nearest 0."""
        num_candidates = int(self.num_points * self.oversample_ratio)
        num_uncertain = int(self.num_points * self.importance_sample_ratio)
        candidates = torch.rand(len(maps), num_candidates, 2, device=maps.device)
        certainty = sample_maps(maps[:, None], candidates * scale).squeeze(1).abs()
        chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        spread = torch.rand(len(maps), self.num_points - num_uncertain, 2, device=maps.device)
        return torch.cat((uncertain, spread), dim=1)
