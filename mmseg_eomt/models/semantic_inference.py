"""Semantic inference: per-query masks and classes to per-pixel class scores."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmseg_eomt.models.device import on_cpu
from mmseg_eomt.models.graph_scores import graph_scores
from mmseg_eomt.models.resize import exporting

STRIP_ELEMENTS = 2**21  # of all queries' masks in a strip on a CPU, 8 MB in fp32; 16 times as many elsewhere


def pixel_scores(
    mask_logits: Tensor,
    weights: Tensor,
    padded_size: tuple[int, int],
    size: tuple[int, int],
    query_tolerance: float = 0.0,
) -> Tensor:
    """Sums over queries of mask probability times weight, with the masks brought to the image's size.

    All queries' masks at full size would take Q times the image's memory. They are made in strips of rows instead, with the
    neighbouring rows that interpolation needs: the same numbers. An exported or compiled graph takes all queries, in strips
    that are written one after the other: :func:`.graph_scores`.

    Args:
        mask_logits: (B, Q, h, w).
        weights: (B, Q, C); for class scores, the probabilities of the classes.
        padded_size: Rows and columns of pixels that the masks cover.
        size: Rows and columns of the image, from the upper left.
        query_tolerance: Queries whose largest absolute weight is lower are skipped in the image's sum, which changes by no
            more than the sum of these weights: less than Q · ``query_tolerance``. Default: 0, all queries.

    Returns:
        Scores (B, C, H, W).

    Source: MaskFormer (Cheng et al., NeurIPS 2021), section 3.4.
    """
    if exporting() or torch.compiler.is_compiling():
        return graph_scores(mask_logits, weights, padded_size, size)
    scores = mask_logits.new_empty(len(mask_logits), weights.shape[-1], *size)
    flat = scores.flatten(2)
    for image, weight in enumerate(weights):
        masks = mask_logits[image : image + 1]
        if query_tolerance > 0:
            kept = weight.abs().amax(-1) >= query_tolerance
            masks, weight = masks[:, kept], weight[kept]
            if not len(weight):
                scores[image] = 0
                continue
        for low, high, strip in _strips(masks, padded_size, size):
            strip = strip.sigmoid_().flatten(0, 1)
            columns = slice(low * size[1], high * size[1])
            flat[image, :, columns] = weight.to(strip.dtype).T @ strip.T
    return scores


def _strips(masks: Tensor, padded_size: tuple[int, int], size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Masks (1, Q, h, w) interpolated to some rows of pixels at a time: first row, row after the last, (rows, W, Q).

    With queries as the last dimension, interpolation takes half the time on a CPU and cropping rows needs no copy.
    """
    rows, pixels = masks.shape[2], padded_size[0] / masks.shape[2]
    elements = STRIP_ELEMENTS * (1 if on_cpu(masks) else 16)
    step = max(1, int(elements / (max(1, masks.shape[1]) * pixels * padded_size[1])))
    if padded_size[0] % rows:  # a row of the map is not whole rows of pixels
        step = rows
    for first in range(0, rows, step):
        last = min(first + step, rows)
        low, high = round(first * pixels), min(round(last * pixels), size[0])
        if low >= high:
            return
        part = masks[:, :, max(first - 1, 0) : last + 1]
        part = part.contiguous(memory_format=torch.channels_last)
        part = F.interpolate(part, (round(part.shape[2] * pixels), padded_size[1]), mode='bilinear')[0]
        start = round(pixels) if first else 0
        yield low, high, part.permute(1, 2, 0)[start : start + high - low, : size[1]].contiguous()
