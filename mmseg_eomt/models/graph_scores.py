"""Semantic inference as an exported graph computes it, without a loop in it."""

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_ELEMENTS = 2**22  # of all queries' masks in a strip of one image, where the size is fixed: 16 MB in fp32


def graph_scores(mask_logits: Tensor, weights: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Sums over queries of mask probability times weight, in strips of rows written one after the other.

    In a strip, masks are interpolated by two products, for which ONNX Runtime takes less time than for its resizing. A graph
    for any size has all masks at once: it does not know how many strips there could be.

    Args:
        mask_logits: (B, Q, h, w).
        weights: (B, Q, C).
        padded_size: Rows and columns of pixels that the masks cover.
        size: Rows and columns of the image, from the upper left.

    Returns:
        Scores (B, C, H, W), as :func:`.pixel_scores`.
    """
    rows, columns = mask_logits.shape[2:]
    number = _number_of_strips(mask_logits, padded_size)
    if number == 1:
        masks = F.interpolate(mask_logits, padded_size, mode='bilinear').sigmoid()
        return torch.bmm(weights.transpose(1, 2), masks.flatten(2)).unflatten(2, padded_size)[..., : size[0], : size[1]]
    down = linear_weights(rows, padded_size[0], mask_logits)
    across = linear_weights(columns, padded_size[1], mask_logits)[: size[1]].T
    pixels = padded_size[0] // rows
    scores = []
    for index in range(number):
        first, last = rows * index // number, rows * (index + 1) // number
        low, high = (first - 1 if index else 0), (last + 1 if index < number - 1 else rows)
        part = torch.matmul(mask_logits[:, :, low:high], across)  # (B, Q, some rows, W)
        part = torch.matmul(down[first * pixels : last * pixels, low:high], part).sigmoid()
        scores.append(torch.bmm(weights.transpose(1, 2), part.flatten(2)).unflatten(2, part.shape[2:]))
    return torch.cat(scores, dim=2)[:, :, : size[0]]


def linear_weights(old: int, new: int, like: Tensor) -> Tensor:
    """Weights (new, old) of old places in the new ones by linear interpolation, as ``like`` in dtype and device."""
    places = torch.arange(old, device=like.device)
    scale = torch.full((), old / new, device=like.device)
    centres = ((torch.arange(new, device=like.device) + 0.5) * scale - 0.5).clamp(min=0)
    centres = torch.minimum(centres, places[-1])
    return (1 - (places - centres[:, None]).abs()).clamp(min=0).to(like.dtype)


def _number_of_strips(mask_logits: Tensor, padded_size: tuple[int, int]) -> int:
    """How many strips there are, each of whole rows of the map and of pixels."""
    rows = mask_logits.shape[2]
    if not all(isinstance(side, int) for side in (rows, *padded_size)) or padded_size[0] % rows:
        return 1
    return max(1, min(rows, mask_logits.shape[1] * padded_size[0] * padded_size[1] // STRIP_ELEMENTS))
