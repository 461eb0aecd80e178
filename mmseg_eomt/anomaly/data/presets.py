"""The published sets of road anomalies as data: their folders, label ids and frames."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmseg.datasets import CityscapesDataset

INLIER, ANOMALY, IGNORED = 0, 1, 255
SURE = {INLIER: INLIER, ANOMALY: ANOMALY, IGNORED: IGNORED}  # labels that are stored as they are delivered
STREET_HAZARDS = {
    'unlabeled': (0, 0, 0),
    'building': (70, 70, 70),
    'fence': (190, 153, 153),
    'other': (250, 170, 160),
    'pedestrian': (220, 20, 60),
    'pole': (153, 153, 153),
    'road line': (157, 234, 50),
    'road': (128, 64, 128),
    'sidewalk': (244, 35, 232),
    'vegetation': (107, 142, 35),
    'car': (0, 0, 142),
    'wall': (102, 102, 156),
    'traffic sign': (220, 220, 0),
}
CITYSCAPES = dict(zip(CityscapesDataset.METAINFO['classes'], map(tuple, CityscapesDataset.METAINFO['palette'])))
BDD_HELD_OUT = ('train', 'motorcycle', 'bicycle')  # ids 16 to 18


@dataclass(frozen=True)
class Layout:
    """Where images and their labels are below a root.

    Attributes:
        images: Pattern of paths: ``{frame}`` stands for a frame's name, ``{scene}`` for a folder that belongs to the name,
            ``*`` for anything within a name.
        labels: Pattern of the labels' paths, with the same names.
    """

    images: str
    labels: str


@dataclass(frozen=True)
class Preset:
    """A set of images with anomalies.

    Attributes:
        layouts: The first one that finds images with labels is read.
        label_map: What stored ids become: 0 inlier, 1 anomaly, 255 ignored. An id that is not in it is unknown, except 255.
        name: Of the preset.
        folder: Name of the published folder, which may be ``data_root`` itself or lie in it.
        by_name: Whether only the folder's name tells the set from others.
        frames: Patterns of the frames' names that are evaluated.
        excluded: Patterns of those that are not.
        unlabelled_at: Positions, among all ``num_published`` frames in order, of those whose label is ignored everywhere.
            They are excluded where all frames are there; elsewhere they stay, and count nowhere.
        num_published: See ``unlabelled_at``.
        hidden: Whether images without a label belong to a hidden test split.
        partial: Whether the folder holds images that do not belong to the set, and have no label therefore.
        only_anomalous: Whether the set has only images with an anomaly; all labels are read then to find them.
        components: Component sizes of the benchmark (see :class:`.AnomalyMetric`), or None if it defines none.
        classes: Names of a model's classes, each with a colour. Default: the 19 of Cityscapes.
        preparation: What to do where the published files have no images, in words.
        source: Where the facts are from.
    """

    layouts: tuple[Layout, ...]
    label_map: Mapping[int, int]
    name: str = 'custom'
    folder: str = ''
    by_name: bool = False
    frames: tuple[str, ...] = ('*',)
    excluded: tuple[str, ...] = ()
    unlabelled_at: tuple[int, ...] = ()
    num_published: int = 0
    hidden: bool = False
    partial: bool = False
    only_anomalous: bool = False
    components: str | None = None
    classes: Mapping[str, tuple[int, ...]] | None = None
    preparation: str = ''
    source: str = ''

    @property
    def metainfo(self) -> dict[str, Any]:
        """``classes`` and ``palette`` of the models that are evaluated on it."""
        classes = CITYSCAPES if self.classes is None else self.classes
        return dict(classes=tuple(classes), palette=[list(colour) for colour in classes.values()])


def preset_of(given: str | Mapping[str, Any]) -> Preset:
    """A preset by its name, or one of the user's own.

    Args:
        given: A name of :data:`PRESETS`, or ``dict(images='images/{frame}.jpg', labels='masks/{frame}.png',
            label_map={0: 0, 1: 1}, …)`` with further attributes of :class:`Preset`.

    Raises:
        ValueError: If the name is unknown, or an attribute is unknown or missing.
    """
    if isinstance(given, str):
        if given not in PRESETS:
            raise ValueError(f'No preset is called {given!r}; there are {", ".join(PRESETS)}.')
        return PRESETS[given]
    options = dict(given)
    missing = [name for name in ('images', 'labels', 'label_map') if name not in options]
    if missing:
        raise ValueError(f'A preset of your own needs images, labels and label_map; {", ".join(missing)} is missing.')
    layout = Layout(options.pop('images'), options.pop('labels'))
    if not all('{frame}' in pattern for pattern in (layout.images, layout.labels)):
        raise ValueError(f"images and labels of a preset need '{{frame}}' in place of the frame's name, got {layout}.")
    unknown = sorted(set(options) - {field.name for field in fields(Preset)} | {'layouts'} & set(options))
    if unknown:
        raise ValueError(f'A preset has no {", ".join(map(repr, unknown))}.')
    options['label_map'] = checked_map(options['label_map'])
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in options.items()}
    return Preset(layouts=(layout,), **values)


def checked_map(label_map: Mapping[Any, Any]) -> dict[int, int]:
    """A label map with whole numbers, as a config file may write it.

    Raises:
        ValueError: If it maps to something else than 0, 1 and 255, or from what is no byte.
    """
    numbers = {int(old): int(new) for old, new in label_map.items()}
    if not numbers or not set(numbers.values()) <= SURE.keys() or not all(0 <= old <= 255 for old in numbers):
        raise ValueError(
            f'label_map takes ids (0 to 255) to 0 (inlier), 1 (anomaly) or 255 (ignored), got {dict(label_map)!r}.'
        )
    return numbers


def _track(folder: str, suffix: str, **options: Any) -> Preset:
    layout = Layout(f'images/{{frame}}.{suffix}', 'labels_masks/{frame}_labels_semantic.png')
    source = 'adynathos/road-anomaly-benchmark, datasets/tracks.py'
    return Preset((layout,), SURE, folder=folder, frames=('validation*',), hidden=True, source=source, **options)


def _course(folder: str, suffix: str, label_map: Mapping[int, int] = SURE, **options: Any) -> Preset:
    layout = Layout(f'images/{{frame}}.{suffix}', 'labels_masks/{frame}.png')
    source = 'the "Validation_Dataset" of Mask2Anomaly'
    return Preset((layout,), label_map, folder=folder, by_name=True, source=source, **options)


# ids 1 and 2 are both anomalies; the published labels hold 0 and 2
ROAD_ANOMALY_IDS = {0: INLIER, 1: ANOMALY, 2: ANOMALY}
PRESETS: dict[str, Preset] = dict(
    road_anomaly_21=_track('dataset_AnomalyTrack', 'jpg', components='anomaly'),
    road_obstacle_21=_track(
        'dataset_ObstacleTrack',
        'webp',
        components='obstacle',
        excluded=('validation_19*', *(f'validation_{i}*' for i in range(21, 30))),
    ),
    road_anomaly=Preset(
        (Layout('frames/{frame}.jpg', 'frames/{frame}.labels/labels_semantic.png'),),
        ROAD_ANOMALY_IDS,
        folder='RoadAnomaly_jpg',
        source='Lis et al., ICCV 2019; NazirNayal8/RbA, datasets/road_anomaly.py',
    ),
    fishyscapes_laf=Preset(
        tuple(
            Layout(f'{folder}{{frame}}_leftImg8bit.png', 'fishyscapes_lostandfound/[0-9][0-9][0-9][0-9]_{frame}_labels.png')
            for folder in ('laf_images/', 'leftImg8bit/*/*/', '*/leftImg8bit/*/*/')
        ),
        SURE,
        partial=True,
        components='anomaly',
        source='Blum et al., IJCV 2021; NazirNayal8/RbA, datasets/fishyscapes.py',
    ),
    fishyscapes_static=Preset(
        tuple(
            Layout(f'fs_static_images_v{version}/{{frame}}_rgb.png', f'fs_val_v{version}/{{frame}}_labels.png')
            for version in (3, 2, 1)
        ),
        SURE,
        preparation='its images are made of Cityscapes by mmseg_eomt.anomaly.data.fishyscapes.make_static_images',
        source='Blum et al., IJCV 2021; NazirNayal8/RbA, datasets/fishyscapes.py',
    ),
    lost_and_found=Preset(
        tuple(
            Layout(f'leftImg8bit/test/*/{{frame}}_leftImg8bit.{suffix}', 'gtCoarse/test/*/{frame}_gtCoarse_labelIds.png')
            for suffix in ('png', 'webp', 'jpg')
        ),
        {0: IGNORED, 1: INLIER, **dict.fromkeys(range(2, 201), ANOMALY)},
        folder='dataset_LostAndFound',
        # people and bicycles, which models of Cityscapes know: LostAndFound-testNoKnown
        excluded=(
            '15_Rechbergstr_Deckenpfronn*',
            '01_Hanns_Klemm_Str_45_000006*',
            '01_Hanns_Klemm_Str_45_000007*',
            '10_Schlossberg_9_000004*',
        ),
        unlabelled_at=(17, 37, 55, 72, 91, 110, 129, 153, 174, 197, 218, 353, 490, 618, 686, 792, 793),
        num_published=1203,
        components='obstacle',
        source='adynathos/road-anomaly-benchmark, datasets/tracks.py, LostAndFound-testNoKnown',
    ),
    street_hazards=Preset(
        tuple(
            Layout(f'{folder}images/test/{{scene}}/{{frame}}.png', f'{folder}annotations/test/{{scene}}/{{frame}}.png')
            for folder in ('test/', '')
        ),
        {**dict.fromkeys(range(1, 14), INLIER), 14: ANOMALY},
        classes=STREET_HAZARDS,
        source='Hendrycks et al., ICML 2022; hendrycks/anomaly-seg, create_dataset.py and issue 17',
    ),
    bdd_anomaly=Preset(
        (
            Layout('images/10k/*/{frame}.jpg', 'labels/sem_seg/masks/*/{frame}.png'),
            Layout('seg/images/*/{frame}.jpg', 'seg/labels/*/{frame}_train_id.png'),
        ),
        {**dict.fromkeys(range(16), INLIER), **dict.fromkeys(range(16, 19), ANOMALY)},
        partial=True,
        only_anomalous=True,
        classes={name: colour for name, colour in CITYSCAPES.items() if name not in BDD_HELD_OUT},
        source='Hendrycks et al., ICML 2022; hendrycks/anomaly-seg, create_bdd_dataset.py and issue 17',
    ),
    course_road_anomaly=_course('RoadAnomaly', 'jpg', ROAD_ANOMALY_IDS),
    course_road_anomaly_21=_course('RoadAnomaly21', 'png', components='anomaly'),
    course_road_obstacle_21=_course('RoadObsticle21', 'webp', components='obstacle'),
    course_fishyscapes_laf=_course('FS_LostFound_full', 'png', components='anomaly'),
    course_fishyscapes_static=_course('fs_static', 'jpg'),
)
PRESETS = {name: Preset(**{**vars(preset), 'name': name}) for name, preset in PRESETS.items()}
