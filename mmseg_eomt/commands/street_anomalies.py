"""Objects that no class names, drawn onto the road of a street scene: barrels, crates, balls, animals, tyres and cones.

Each family is a function of a random generator: it draws one object onto a small canvas, as large as it can, and
:func:`add_anomalies` puts it on the road in perspective, with a shadow. Their shapes and textures are none of the scene's.
"""

from collections.abc import Callable

import cv2
import numpy as np

ANOMALY = 254  # in the label map of a scene; files have 0, 1 and 255
SIDE = 96  # pixels of an object's canvas
Drawing = tuple[np.ndarray, np.ndarray]  # BGR (SIDE, SIDE, 3) and where it is the object (SIDE, SIDE), uint8
PAINTS = ((40, 120, 240), (60, 200, 230), (180, 60, 160), (60, 170, 60), (230, 230, 235), (200, 150, 30), (40, 40, 200))
FURS = ((45, 75, 120), (120, 150, 175), (35, 40, 45), (215, 220, 225))


def barrel(rng: np.random.Generator) -> Drawing:
    """A drum with bands of two paints, lighter in the middle."""
    first, second = _two(rng, PAINTS)
    picture, mask = _stripes(first, second, SIDE / rng.integers(4, 7)), _empty()
    cv2.rectangle(mask, (20, 8), (76, 88), 1, -1)
    for y in (8, 88):
        cv2.ellipse(mask, (48, y), (28, 7), 0, 0, 360, 1, -1)
    picture = _lit(picture, np.abs(np.arange(SIDE) - 40.0)[None] / 60)
    cv2.ellipse(picture, (48, 8), (28, 7), 0, 0, 360, _darker(first), -1)
    return picture, mask


def crate(rng: np.random.Generator) -> Drawing:
    """A box of boards, seen from a corner: two sides and a lid."""
    wood = _mix(rng, (70, 130, 190), 30)
    picture, mask = np.full((SIDE, SIDE, 3), wood, np.uint8), _empty()
    edge = int(rng.integers(35, 65))
    left, right = [(4, 24), (edge, 34), (edge, 95), (4, 80)], [(edge, 34), (92, 24), (92, 80), (edge, 95)]
    lid = [(4, 24), (96 - edge, 10), (92, 24), (edge, 34)]
    for corners, light in ((left, 1.0), (right, 0.65), (lid, 1.3)):
        cv2.fillPoly(picture, [np.array(corners)], _darker(wood, light))
        cv2.fillPoly(mask, [np.array(corners)], 1)
    for t in np.linspace(0, 1, int(rng.integers(4, 6))):
        for (a, b), (c, d) in ((left[:2], left[:1:-1]), (right[:2], right[:1:-1])):
            start, end = _between(a, c, t), _between(b, d, t)
            cv2.line(picture, start, end, _darker(wood, 0.35), 3)
    cv2.line(picture, left[0], left[2], _darker(wood, 0.5), 7)
    return picture, mask


def ball(rng: np.random.Generator) -> Drawing:
    """A sphere with a checkered skin."""
    first, second = _two(rng, PAINTS)
    y, x = (np.mgrid[:SIDE, :SIDE] - 47.5) / 46
    depth = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
    turn = rng.uniform(0, np.pi)
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    around, up = np.arctan2(x, depth + 1e-6), np.arcsin(np.clip(y, -1, 1))
    number = rng.integers(4, 8)
    checks = (np.floor(around * number / np.pi) + np.floor(up * number / np.pi)) % 2
    picture = np.where(checks[..., None] > 0, np.array(first), np.array(second))
    return _lit(picture, 0.8 * (1 - depth)), (depth > 0).astype(np.uint8)


def animal(rng: np.random.Generator) -> Drawing:
    """A body with spots on four legs, with head, ears and tail."""
    fur, spots = _two(rng, FURS)
    mask = _empty()
    cv2.ellipse(mask, (46, 50), (32, int(rng.integers(14, 20))), 0, 0, 360, 1, -1)
    for x in (20, 32, 60, 72):
        cv2.rectangle(mask, (x - 3, 52), (x + 3, 94), 1, -1)
    head = (80, int(rng.integers(22, 36)))
    cv2.line(mask, (66, 46), head, 1, 14)
    cv2.ellipse(mask, head, (14, 10), 25, 0, 360, 1, -1)
    for x in (-6, 5):
        cv2.fillPoly(mask, [np.array([(head[0] + x - 4, head[1] - 6), (head[0] + x, 4), (head[0] + x + 4, head[1] - 6)])], 1)
    cv2.line(mask, (17, 46), (4, int(rng.integers(22, 64))), 1, 5)
    picture = np.full((SIDE, SIDE, 3), fur, np.uint8)
    for _ in range(rng.integers(5, 12)):
        cv2.circle(picture, (int(rng.integers(12, 84)), int(rng.integers(28, 70))), int(rng.integers(4, 10)), spots, -1)
    picture = _lit(picture, np.linspace(0, 0.5, SIDE)[:, None])
    return (picture[:, ::-1].copy(), mask[:, ::-1].copy()) if rng.random() < 0.5 else (picture, mask)


def tyre(rng: np.random.Generator) -> Drawing:
    """A ring with a tread, through which the road is seen."""
    picture, mask = np.full((SIDE, SIDE, 3), _mix(rng, (38, 36, 36), 10), np.uint8), _empty()
    across = int(rng.integers(28, 48))
    cv2.ellipse(mask, (48, 48), (across, 47), 0, 0, 360, 1, -1)
    cv2.ellipse(mask, (48, 48), (across // 2, 24), 0, 0, 360, 0, -1)
    for angle in np.linspace(0, 2 * np.pi, 20):
        ray = np.array([across * np.cos(angle), 47 * np.sin(angle)])
        start, end = np.round(48 + 0.8 * ray).astype(int).tolist(), np.round(48 + ray).astype(int).tolist()
        cv2.line(picture, start, end, (95, 95, 95), 3)
    cv2.ellipse(picture, (48, 48), (across // 2 + 4, 28), 0, 0, 360, (120, 120, 120), 3)
    return picture, mask


def cone(rng: np.random.Generator) -> Drawing:
    """A striped cone on a plate."""
    paint = _mix(rng, PAINTS[rng.choice([0, 1, 6])], 15)
    picture, mask = _stripes(paint, (235, 235, 235), SIDE / rng.integers(4, 6)), _empty()
    cv2.fillPoly(mask, [np.array([(42, 2), (54, 2), (78, 84), (18, 84)])], 1)
    cv2.rectangle(mask, (6, 82), (90, 94), 1, -1)
    picture = _lit(picture, np.linspace(0, 0.5, SIDE)[None])
    cv2.rectangle(picture, (0, 82), (SIDE, SIDE), _darker(paint, 0.6), -1)
    return picture, mask


# height in pixels of an object that stands where things have scale 1, in a scene 128 pixels high: a car has 20, a person 25
FAMILIES: dict[str, tuple[Callable[[np.random.Generator], Drawing], float]] = dict(
    barrel=(barrel, 30), crate=(crate, 27), ball=(ball, 23), animal=(animal, 32), tyre=(tyre, 21), cone=(cone, 26)
)


def add_anomalies(rng: np.random.Generator, image: np.ndarray, label: np.ndarray, horizon: int, road: int) -> list[str]:
    """Put one to three objects on the road of a scene, in place.

    Args:
        rng: Source of all that is random.
        image: BGR (H, W, 3), uint8.
        label: (H, W), uint8; objects get the id ``ANOMALY``.
        horizon: The row in which the road begins.
        road: Id of the road.

    Returns:
        Families of the objects, one name for each: at least one.
    """
    names = list(rng.choice(list(FAMILIES), size=rng.integers(1, 4), replace=False))
    depths = np.sort(rng.uniform(0.15, 0.72, len(names)))  # the nearest one last: it may hide others
    for name, depth in zip(names, depths):
        drawing, height = FAMILIES[name]
        size = height * (0.35 + depth) * rng.uniform(0.6, 1.4) * len(image) / 128
        foot = _free_place(rng, label == road, round(horizon + depth * (len(image) - horizon)), 0.8 * size)
        _put(image, label, drawing(rng), foot, max(6, round(size)))
    return [str(name) for name in names]


def _free_place(rng: np.random.Generator, road: np.ndarray, row: int, width: float) -> tuple[int, int]:
    """x, y of a foot: within the row or the nearest one in which a piece of road is as wide as asked for, or widest."""
    wide = cv2.erode(road.astype(np.uint8), np.ones((1, max(1, round(width))), np.uint8), borderValue=0)
    y, x = np.nonzero(wide if wide.any() else road)
    nearest = np.abs(y - row) == np.abs(y - row).min()
    chosen = rng.integers(nearest.sum())
    return int(x[nearest][chosen]), int(y[nearest][chosen])


def _put(image: np.ndarray, label: np.ndarray, drawing: Drawing, foot: tuple[int, int], size: int) -> None:
    """Scale a drawing to ``size`` pixels and put the middle of its lower edge at ``foot``, on its shadow."""
    picture = cv2.resize(drawing[0], (size, size), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(drawing[1].astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.5
    shadow = np.zeros(label.shape, np.uint8)
    cv2.ellipse(shadow, (foot[0] + size // 5, foot[1]), (round(0.55 * size), max(1, size // 7)), 0, 0, 360, 1, -1)
    shaded = (shadow > 0) & (label != ANOMALY)
    image[shaded] = (0.7 * image[shaded]).astype(np.uint8)
    y, x = np.nonzero(mask)
    x, y = x + foot[0] - size // 2, y + foot[1] - size + 1
    inside = (x >= 0) & (x < label.shape[1]) & (y >= 0)
    image[y[inside], x[inside]] = picture[mask][inside]
    label[y[inside], x[inside]] = ANOMALY


def anomaly_labels(label: np.ndarray, ignored: int) -> np.ndarray:
    """A scene's labels as files have them: 0, 1 for anomalies, 255 for ``ignored`` and a pixel around each anomaly."""
    anomaly = (label == ANOMALY).astype(np.uint8)
    rim = cv2.dilate(anomaly, np.ones((3, 3), np.uint8)) > anomaly
    return np.where(rim | (label == ignored), 255, anomaly).astype(np.uint8)


def _empty() -> np.ndarray:
    return np.zeros((SIDE, SIDE), np.uint8)


def _two(rng: np.random.Generator, colours: tuple) -> list[tuple[int, int, int]]:
    """Two different ones."""
    return [_mix(rng, colours[i], 15) for i in rng.choice(len(colours), 2, replace=False)]


def _mix(rng: np.random.Generator, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    blue, green, red = np.clip(np.array(colour) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return blue, green, red


def _darker(colour: tuple[int, int, int], light: float = 0.6) -> tuple[int, int, int]:
    blue, green, red = np.clip(np.array(colour) * light, 0, 255).astype(int).tolist()
    return blue, green, red


def _stripes(first: tuple[int, int, int], second: tuple[int, int, int], high: float) -> np.ndarray:
    rows = (np.arange(SIDE) // high % 2)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(np.where(rows > 0, second, first), (SIDE, SIDE, 3)), np.uint8)


def _lit(picture: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """A picture darkened by a shade from 0 to 1, of any shape that fits (SIDE, SIDE)."""
    light = 1 - 0.8 * np.broadcast_to(shade, (SIDE, SIDE))[..., None]
    return np.ascontiguousarray(np.clip(picture * light, 0, 255), np.uint8)


def _between(start: tuple[int, int], end: tuple[int, int], t: float) -> tuple[int, int]:
    x, y = np.round(np.array(start) * (1 - t) + np.array(end) * t).astype(int).tolist()
    return x, y
