"""One-to-one matching of queries and target masks."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmseg_eomt.models.targets import SemanticTargets

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
        costs: (L, B, Q, K), one matrix a layer and image.
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
