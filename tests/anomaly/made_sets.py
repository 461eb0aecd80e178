"""Tiny sets of road anomalies, written as they are published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((24, 40), (32, 48), (20, 36))  # height and width of the first, second and third image, and so on


def write_frame(image: Path, label: Path | None, ids: Sequence[int], size: tuple[int, int]) -> None:
    """An image, and a label whose columns hold ids by turns."""
    image.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(image.name)).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    if label is not None:
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array(ids, np.uint8), size[::-1]).T.copy()[: size[0]]).save(label)


def write_set(root: Path, frames: Sequence[tuple[str, str | None]], ids: Sequence[int] = (0, 1, 255)) -> Path:
    """Frames given by the paths of image and label, of several sizes."""
    for i, (image, label) in enumerate(frames):
        write_frame(root / image, root / label if label else None, ids, SIZES[i % len(SIZES)])
    return root


def track(root: Path, suffix: str, names: Sequence[str], hidden: Sequence[str] = ()) -> Path:
    """A track of SegmentMeIfYouCan, with the coloured labels that lie beside the others."""
    labels = [(f'images/{name}.{suffix}', f'labels_masks/{name}_labels_semantic.png') for name in names]
    write_set(root, [*labels, *((f'images/{name}.{suffix}', None) for name in hidden)])
    for name in names:
        Image.new('RGB', (40, 24)).save(root / f'labels_masks/{name}_labels_semantic_color.png')
    return root


LAF = ('04_Maurener_Weg_8_000000_000030', '13_Elly_Beinhorn_Str_000003_000260')
SCENES = {LAF[0]: 'train/04_Maurener_Weg_8', LAF[1]: 'test/13_Elly_Beinhorn_Str'}
STATIC = ('0000_frankfurt_000001_046504', '0001_munster_000002_000019')


def road_anomaly_21(root: Path) -> Path:
    return track(root / 'dataset_AnomalyTrack', 'jpg', [f'validation{i:04}' for i in range(3)], ['airplane0000', 'bear0000'])


def road_obstacle_21(root: Path) -> Path:
    names = ['validation_1', 'validation_18', 'validation_19', 'validation_21', 'validation_3']
    return track(root / 'dataset_ObstacleTrack', 'webp', names, ['snowstorm1_00_00_51.868', 'curvy-street_carton_1'])


def road_anomaly(root: Path) -> Path:
    names = ('animals01_a', 'animals02_b')
    frames = [(f'frames/{name}.jpg', f'frames/{name}.labels/labels_semantic.png') for name in names]
    return write_set(root / 'RoadAnomaly_jpg', frames, (0, 2))


def fishyscapes_laf(root: Path) -> Path:
    labels = [f'fishyscapes_lostandfound/{i:04}_{name}_labels.png' for i, name in enumerate(LAF)]
    frames = [(f'laf_images/{name}_leftImg8bit.png', label) for name, label in zip(LAF, labels)]
    return write_set(root, [*frames, ('laf_images/02_Hanns_Klemm_Str_44_000000_000010_leftImg8bit.png', None)])


def fishyscapes_laf_in_scenes(root: Path) -> Path:
    images = [f'lostandfound/leftImg8bit/{SCENES[name]}/{name}_leftImg8bit.png' for name in LAF]
    labels = [f'fishyscapes_lostandfound/{i:04}_{name}_labels.png' for i, name in enumerate(LAF)]
    return write_set(root, list(zip(images, labels)))


def fishyscapes_static(root: Path) -> Path:
    return write_set(root, [(f'fs_static_images_v2/{name}_rgb.png', f'fs_val_v2/{name}_labels.png') for name in STATIC])


def lost_and_found(root: Path) -> Path:
    scenes = {
        '01_Hanns_Klemm_Str_45': ('000000_000080', '000006_000080'),
        '15_Rechbergstr_Deckenpfronn': ('000000_000090',),
        '13_Elly_Beinhorn_Str': ('000000_000050',),
    }
    stems = [(f'{scene}/{scene}_{frame}') for scene, frames in scenes.items() for frame in frames]
    frames = [(f'leftImg8bit/test/{s}_leftImg8bit.png', f'gtCoarse/test/{s}_gtCoarse_labelIds.png') for s in stems]
    return write_set(root / 'dataset_LostAndFound', frames, (0, 1, 2, 43, 200))


def street_hazards(root: Path) -> Path:
    frames = [f'{town}/{name}.png' for town, name in (('t5', '300'), ('t5', '301'), ('t6', '300'))]
    pairs = [(f'test/images/test/{frame}', f'test/annotations/test/{frame}') for frame in frames]
    return write_set(root, pairs, (1, 2, 8, 13, 14))


def bdd_anomaly(root: Path) -> Path:
    def pairs(split: str, *names: str) -> list[tuple[str, str]]:
        return [(f'images/10k/{split}/{name}.jpg', f'labels/sem_seg/masks/{split}/{name}.png') for name in names]

    write_set(root, pairs('train', '00067cfb-e535423e'), (0, 13, 255))
    write_set(root, pairs('val', '7d2f7975-e0c1c5a7'), (0, 1, 15, 18, 255))
    return write_set(root, [*pairs('train', '00091078-59817bb0'), ('images/10k/test/ac6d4f42.jpg', None)], (2, 16, 17, 255))


def course(root: Path, folder: str, suffix: str, ids: Sequence[int] = (0, 1, 255)) -> Path:
    frames = [(f'images/{name}.{suffix}', f'labels_masks/{name}.png') for name in ('0', '1')]
    return write_set(root / folder, frames, ids)


COURSE = dict(
    course_road_anomaly=('RoadAnomaly', 'jpg', (0, 2)),
    course_road_anomaly_21=('RoadAnomaly21', 'png'),
    course_road_obstacle_21=('RoadObsticle21', 'webp'),
    course_fishyscapes_laf=('FS_LostFound_full', 'png'),
    course_fishyscapes_static=('fs_static', 'jpg'),
)
# writes a set; how many images are evaluated; the labels that are delivered
MADE = dict(
    road_anomaly_21=(road_anomaly_21, 3, {0, 1, 255}),
    road_obstacle_21=(road_obstacle_21, 3, {0, 1, 255}),
    road_anomaly=(road_anomaly, 2, {0, 1}),
    fishyscapes_laf=(fishyscapes_laf, 2, {0, 1, 255}),
    fishyscapes_static=(fishyscapes_static, 2, {0, 1, 255}),
    lost_and_found=(lost_and_found, 2, {0, 1, 255}),
    street_hazards=(street_hazards, 3, {0, 1}),
    bdd_anomaly=(bdd_anomaly, 2, {0, 1, 255}),
    **{
        name: (lambda root, args=args: course(root, *args), 2, {0, 1} if len(args) == 3 else {0, 1, 255})
        for name, args in COURSE.items()
    },
)
