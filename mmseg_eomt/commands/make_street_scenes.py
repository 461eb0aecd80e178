"""Write a small synthetic street-scene set in the Cityscapes layout: for trying, and for tests.

    python tools/make_street_scenes.py OUT [--train 48] [--val 16] [--anomalies 0] [--height 128] [--width 256] [--seed 0]

Each split has two "cities" of drawn scenes, ``day`` and ``dusk``: the same kind of scene in two lights. Labels are
Cityscapes train ids of nine classes, with 255 (ignore) on the car's bonnet and around thin things. The same seed gives the
same files.

With ``--anomalies N``, N more scenes by day go to ``RoadAnomaly21``, in the layout of the preset ``course_road_anomaly_21``
of ``AnomalyDataset``. Three of four have unseen objects on the road (street_anomalies.py draws them). Their labels are 0,
1 (anomaly) and 255 (ignore).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.utils import track_iter_progress

from mmseg_eomt.commands.street_anomalies import add_anomalies, anomaly_labels

ROAD, SIDEWALK, BUILDING, POLE, SIGN, TREE, SKY, PERSON, CAR, IGNORE = 0, 1, 2, 5, 7, 8, 10, 11, 13, 255
LOOKS = ('day', 'dusk')


class Scene:
    """One drawn scene: image (H, W, 3), BGR, uint8, and train ids (H, W), uint8.

    Args:
        rng: Source of all that is random in it.
        height: Pixels.
        width: Pixels.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height = height
        self.width = width
        self.image = np.zeros((height, width, 3), np.uint8)
        self.label = np.full((height, width), SKY, np.uint8)
        self.horizon = int(height * rng.uniform(0.4, 0.5))
        self._sky()
        self._houses()
        self._ground()
        for _ in range(rng.integers(2, 5)):
            self._tree()
        things = [self._car] * rng.integers(2, 5) + [self._person] * rng.integers(1, 5)
        things += [self._pole] * rng.integers(2, 5)
        for i in rng.permutation(len(things)):
            things[i]()
        self._bonnet()

    def _colour(self, *bgr: int, spread: int = 18) -> tuple[int, int, int]:
        blue, green, red = np.clip(np.array(bgr) + self.rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
        return blue, green, red

    def _fill(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], label: int) -> None:
        polygon = [np.round(np.array(points)).astype(np.int32)]
        cv2.fillPoly(self.image, polygon, colour)
        cv2.fillPoly(self.label, polygon, (label,))

    def _box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int], label: int) -> None:
        self._fill([(left, top), (right, top), (right, bottom), (left, bottom)], colour, label)

    def _sky(self) -> None:
        top, low = np.array(self._colour(225, 160, 95)), np.array(self._colour(235, 215, 190))
        fraction = np.linspace(0, 1, self.height)[:, None, None]
        self.image[:] = (top * (1 - fraction) + low * fraction).astype(np.uint8)

    def _houses(self) -> None:
        left = -int(self.rng.integers(0, 20))
        while left < self.width:
            wide = int(self.width * self.rng.uniform(0.1, 0.22))
            if self.rng.random() < 0.8:
                top = int(self.horizon * self.rng.uniform(0.1, 0.7))
                wall = self._colour(*[(110, 130, 170), (150, 160, 165), (95, 105, 135)][self.rng.integers(3)])
                self._box(left, top, left + wide, self.horizon + 6, wall, BUILDING)
                for x in range(left + 4, left + wide - 6, 10):
                    for y in range(top + 4, self.horizon - 4, 11):
                        self._box(x, y, x + 5, y + 6, self._colour(90, 75, 60), BUILDING)
            left += wide + int(self.rng.integers(0, 12))

    def _ground(self) -> None:
        centre, bottom = self.width * self.rng.uniform(0.4, 0.6), self.height
        far, near = self.width * self.rng.uniform(0.03, 0.08), self.width * self.rng.uniform(0.4, 0.55)
        self._box(0, self.horizon, self.width, bottom, self._colour(150, 160, 165), SIDEWALK)
        corners = [
            (centre - far, self.horizon),
            (centre + far, self.horizon),
            (centre + near, bottom),
            (centre - near, bottom),
        ]
        self._fill(corners, self._colour(95, 92, 90, spread=10), ROAD)
        for depth in np.arange(0.15, 1, 0.22):  # lane marks
            y, half = self.horizon + depth * (bottom - self.horizon), 1 + 2 * depth
            self._box(centre - half, y, centre + half, y + 8 * depth, self._colour(225, 225, 225), ROAD)

    def _place(self, side: float) -> tuple[float, float, float]:
        """x, y of a thing's foot and its scale, ``side`` from 0 (middle of the road) to 1 (edge of the image)."""
        depth = self.rng.uniform(0.12, 0.75)
        reach = self.width * (0.08 + 0.5 * depth) * side
        x = self.width / 2 + reach * self.rng.choice([-1, 1])
        return x, self.horizon + depth * (self.height - self.horizon), 0.35 + depth

    def _tree(self) -> None:
        x, y, scale = self._place(self.rng.uniform(0.9, 1.3))
        scale *= self.height / 128
        self._box(x - 2 * scale, y - 24 * scale, x + 2 * scale, y, self._colour(50, 65, 85), TREE)
        for _ in range(6):
            middle = (int(x + self.rng.normal(0, 7 * scale)), int(y - 30 * scale + self.rng.normal(0, 6 * scale)))
            radius, green = int(self.rng.uniform(6, 11) * scale), self._colour(55, 120, 70)
            cv2.circle(self.image, middle, radius, green, -1)
            cv2.circle(self.label, middle, radius, TREE, -1)

    def _car(self) -> None:
        x, y, scale = self._place(self.rng.uniform(0, 0.7))
        scale *= self.height / 128
        wide, tall = 19 * scale, 11 * scale
        paint = self._colour(*[(60, 50, 190), (170, 80, 40), (215, 215, 215), (45, 45, 50)][self.rng.integers(4)], spread=25)
        self._box(x - wide, y - tall, x + wide, y, paint, CAR)
        roof = [(x - 0.7 * wide, y - tall), (x - 0.45 * wide, y - 1.8 * tall), (x + 0.45 * wide, y - 1.8 * tall)]
        self._fill([*roof, (x + 0.7 * wide, y - tall)], self._colour(70, 60, 50), CAR)
        for end in (-0.65, 0.65):
            self._box(x + (end - 0.2) * wide, y - 0.3 * tall, x + (end + 0.2) * wide, y + 0.25 * tall, (25, 25, 25), CAR)

    def _person(self) -> None:
        x, y, scale = self._place(self.rng.uniform(0.75, 1.2))
        scale *= self.height / 128
        self._box(x - 3 * scale, y - 9 * scale, x + 3 * scale, y, self._colour(60, 45, 40), PERSON)
        coat = self._colour(*[(40, 60, 210), (200, 90, 60), (60, 180, 200)][self.rng.integers(3)], spread=25)
        self._box(x - 4 * scale, y - 19 * scale, x + 4 * scale, y - 9 * scale, coat, PERSON)
        head = (int(x), int(y - 22 * scale))
        for canvas, value in ((self.image, self._colour(140, 170, 215)), (self.label, PERSON)):
            cv2.circle(canvas, head, max(1, int(3 * scale)), value, -1)

    def _pole(self) -> None:
        x, y, scale = self._place(self.rng.uniform(0.75, 1.1))
        scale *= self.height / 128
        half, top = max(1.0, 1.3 * scale), y - 44 * scale
        self._box(x - half - 1, top, x + half + 1, y, self._colour(120, 120, 120), IGNORE)
        self._box(x - half, top, x + half, y, self._colour(120, 120, 120), POLE)
        if self.rng.random() < 0.7:
            plate = self._colour(*[(50, 40, 200), (190, 110, 30), (40, 190, 220)][self.rng.integers(3)])
            self._box(x - 6 * scale, top, x + 6 * scale, top + 12 * scale, plate, SIGN)

    def _bonnet(self) -> None:
        middle, axes = (self.width // 2, self.height + 2), (int(self.width * 0.32), int(self.height * 0.1))
        cv2.ellipse(self.image, middle, axes, 0, 0, 360, self._colour(60, 55, 50), -1)
        cv2.ellipse(self.label, middle, axes, 0, 0, 360, IGNORE, -1)

    def seen_by(self, look: str) -> np.ndarray:
        """The image in a light: ``'day'``, or ``'dusk'``: dark and blue, a red sky, lit windows, headlights, grain."""
        image = cv2.GaussianBlur(self.image, (3, 3), 0).astype(np.float32)
        if look == 'dusk':
            sky = (self.label == SKY)[..., None]
            glow = np.linspace(0.2, 1, self.height)[:, None, None] * np.array([70, 95, 215], np.float32)
            image = np.where(sky, 0.6 * glow + 0.4 * image, image * np.array([0.8, 0.62, 0.55]) + np.array([18, 4, 2]))
            lit = (self.label == BUILDING) & (self.image.max(2) < 110) & (self.rng.random(self.label.shape) < 0.8)
            image[lit] = (90, 190, 240)
            lamps = np.zeros_like(self.image)
            for region in cv2.connectedComponentsWithStats((self.label == CAR).astype(np.uint8))[2][1:]:
                x, y, wide, tall, _ = (int(v) for v in region)
                for side in (0.2, 0.8):
                    cv2.circle(lamps, (int(x + side * wide), int(y + 0.6 * tall)), max(2, tall // 6), (190, 240, 255), -1)
            image += cv2.GaussianBlur(lamps, (0, 0), 3).astype(np.float32)
        grain = 12 if look == 'dusk' else 6
        return np.clip(image + self.rng.normal(0, grain, image.shape), 0, 255).astype(np.uint8)


def write_scenes(out: Path, split: str, look: str, count: int, size: tuple[int, int], seed: int) -> None:
    """Write ``count`` scenes of one split and look, in place of those that are there; ``size`` is (height, width)."""
    folders = [out / kind / split / look for kind in ('leftImg8bit', 'gtFine')]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f'{look}_*_000019_*.png'):
            old.unlink()
    for i in track_iter_progress(range(count)):
        rng = np.random.default_rng([seed, LOOKS.index(look), split == 'val', i])
        scene = Scene(rng, *size)
        files = (f'{look}_{i:06d}_000019_leftImg8bit.png', f'{look}_{i:06d}_000019_gtFine_labelTrainIds.png')
        for folder, name, data in zip(folders, files, (scene.seen_by(look), scene.label)):
            write(folder / name, data)


def write_anomalies(out: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Write ``count`` scenes by day, three of four with anomalies, in place of those that are there."""
    images, labels = (out / 'RoadAnomaly21' / kind for kind in ('images', 'labels_masks'))
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob('street_*.png'):
            old.unlink()
    for i in track_iter_progress(range(count)):
        rng = np.random.default_rng([seed, len(LOOKS), 0, i])
        scene = Scene(rng, *size)
        if i % 4 < 3:
            add_anomalies(rng, scene.image, scene.label, scene.horizon, ROAD)
        write(images / f'street_{i:04d}.png', scene.seen_by('day'))
        write(labels / f'street_{i:04d}.png', anomaly_labels(scene.label, IGNORE))


def write(path: Path, data: np.ndarray) -> None:
    """Write a picture.

    Raises:
        OSError: If that was not possible.
    """
    if not cv2.imwrite(str(path), data):
        raise OSError(f'{path} could not be written: is there space, and may you write there?')


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path, help='folder to write the files into')
    parser.add_argument('--train', type=int, default=48, help='training scenes of each look (48)')
    parser.add_argument('--val', type=int, default=16, help='validation scenes of each look (16)')
    parser.add_argument('--anomalies', type=int, default=0, help='scenes for anomalies, three of four with some (0)')
    parser.add_argument('--height', type=int, default=128, help='pixels (128)')
    parser.add_argument('--width', type=int, default=256, help='pixels (256)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same files (0)')
    args = parser.parse_args(argv)
    if min(args.train, args.val, args.anomalies, args.seed) < 0 or min(args.height, args.width) < 64:
        parser.error('--train, --val, --anomalies and --seed must be at least 0, --height and --width at least 64')
    for split, count in (('train', args.train), ('val', args.val)):
        for look in LOOKS:
            write_scenes(args.out, split, look, count, (args.height, args.width), args.seed)
            print(f' {split}/{look}: {count} scenes in {args.out}')
    if args.anomalies:
        write_anomalies(args.out, args.anomalies, (args.height, args.width), args.seed)
        print(f' anomalies: {args.anomalies} scenes in {args.out}')
