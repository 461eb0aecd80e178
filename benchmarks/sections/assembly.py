"""Semantic inference alone: queries' masks and classes to scores."""

import sys

import torch

from benchmarks.candidates import QUERIES, scores_as_written
from benchmarks.meter import Meter
from benchmarks.report import row
from mmseg_eomt.models import semantic_inference


def assemble(meter: Meter, device: str) -> list[dict]:
    """Scores at 1024×1024 from masks at a quarter of it; 80 queries are almost certainly no object."""
    torch.manual_seed(0)
    masks, classes, size = 3 * torch.randn(1, QUERIES, 256, 256, device=device), torch.randn(1, QUERIES, 20), (1024, 1024)
    classes[:, 20:, -1] += 12
    classes = classes.to(device)
    weights = classes.softmax(-1)[..., :-1]
    tolerance = 1e-3
    strips = semantic_inference.pixel_scores(masks, weights, size, size)
    dropped = semantic_inference.pixel_scores(masks, weights, size, size, tolerance)
    expected = scores_as_written(masks, classes, size)
    best = weights.amax(-1)
    bound = float(best[best < tolerance].sum())
    errors = dict(strips=float((strips - expected).abs().max()), dropped=float((dropped - expected).abs().max()))
    if errors['strips'] > 1e-5 or errors['dropped'] > bound:
        sys.exit(f'The scores differ by {errors}, more than the bound {bound:.1e}.')
    del strips, dropped, expected
    taken = meter(
        dict(
            as_written=lambda: scores_as_written(masks, classes, size),
            strips=lambda: semantic_inference.pixel_scores(masks, classes.softmax(-1)[..., :-1], size, size),
            dropped=lambda: semantic_inference.pixel_scores(masks, classes.softmax(-1)[..., :-1], size, size, tolerance),
        )
    )
    return [
        row('semantic inference in strips', ours=taken['strips'], as_written=taken['as_written'], error=errors['strips']),
        row(
            f'semantic inference, queries below {tolerance} excluded',
            ours=taken['dropped'],
            as_written=taken['as_written'],
            error=errors['dropped'],
            bound=bound,
        ),
    ]
