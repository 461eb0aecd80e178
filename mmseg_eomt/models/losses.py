"""EoMT's training losses."""

import itertools

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmseg_eomt.models.matching import assign, pairwise_costs
from mmseg_eomt.models.targets import SemanticTargets, sample_maps

MASKS_AT_ONCE = 8  # whose candidate points and full-size targets are held on a CPU; eight times as many elsewhere


class MaskClassificationLoss(nn.Module):
    """Hungarian matching, then class cross entropy, mask cross entropy and dice, for every supervised layer.

    Args:
        num_classes: K, without "no object".
        num_points: Points a mask is compared at.
        oversample_ratio: Candidates drawn for each point of the mask losses.
        importance_sample_ratio: Share of the points taken where the prediction is least certain.
        class_weight: Weight of the class cross entropy.
        mask_weight: Weight of the mask cross entropy.
        dice_weight: Weight of the dice loss.
        no_object_weight: Weight of the class "no object" in the class cross entropy.

    Raises:
        ValueError: If the numbers of points are out of range.

    Source: Mask2Former, sections 3.2 and 3.3; public implementation ``training/mask_classification_loss.py``.
    """

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
            mask_logits: A layer each, (B, Q, h, w).
            class_logits: A layer each, (B, Q, K + 1).
            targets: The label maps.
            extent: Share of the maps' width and height that the image takes, where it was padded right and below.

        Returns:
            A dict a layer with scalars ``loss_cls``, ``loss_mask`` and ``loss_dice``. A batch without any labelled pixel
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
        """Matches (L, M, 3) as :func:`~mmseg_eomt.models.matching.assign` gives them.

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
        """Unweighted mask cross entropy and dice of each layer, (L,) each, over the mean number of masks a process.

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
        at_once = MASKS_AT_ONCE * (1 if matched.device.type == 'cpu' else 8)
        placed = itertools.repeat(None) if points is None else points.split(at_once)
        rows = []
        # some masks at a time: their points outgrow the caches, and at once would take more memory than the model
        for some, image, label, place in zip(*(part.split(at_once) for part in (matched, images, classes)), placed):
            place = self.draw_points(some, scale) if place is None else place
            target = targets.sample_each(image, label, place)
            logits = sample_maps(some[:, None], place * scale).squeeze(1)
            cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction='none').mean(1)
            probability = logits.sigmoid()
            overlap = 2 * (probability * target).sum(1)
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
