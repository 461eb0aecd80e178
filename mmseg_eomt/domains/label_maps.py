"""What the ids in other datasets' labels are among Cityscapes' 19 classes."""

from collections.abc import Mapping, Sequence

from mmseg.datasets import CityscapesDataset, MapillaryDataset_v1, MapillaryDataset_v2

CLASSES: tuple[str, ...] = CityscapesDataset.METAINFO['classes']
IGNORED = 255
LANE_MARKING = 'Lane Marking - '


def from_ids(ids: Mapping[int, str], known: Sequence[int]) -> dict[int, int]:
    """Train ids of stored ids, given by their class; the other known ids are ignored."""
    return {old: CLASSES.index(ids[old]) if old in ids else IGNORED for old in known}


def from_names(names: Sequence[str], classes: Mapping[str, str]) -> dict[int, int]:
    """As :func:`from_ids`, of a dataset whose id of a class is its place in a list, given the class of each name."""
    return from_ids({i: classes[name] for i, name in enumerate(names) if name in classes}, range(len(names)))


# mcordts/cityscapesScripts, helpers/labels.py. Those of GTA5 are the same, with one more, 34, for license plates (Richter et
# al., "Playing for Data", ECCV 2016). 255 is -1 in a byte: license plates in Cityscapes.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of CLASSES, in their order
CITYSCAPES = from_ids(dict(zip(CITYSCAPES_IDS, CLASSES)), (*range(35), 255))

# README.txt of SYNTHIA-RAND-CITYSCAPES. 16 (terrain), 18 (truck) and 20 (train) do not occur; 13 is a parking slot, 14 road
# work and 22 lane marking, which is ignored by convention (lhoyer/DAFormer and ysj9909/SoMA, tools/convert_datasets).
SYNTHIA = from_ids(
    {
        3: 'road',
        4: 'sidewalk',
        2: 'building',
        21: 'wall',
        5: 'fence',
        7: 'pole',
        15: 'traffic light',
        9: 'traffic sign',
        6: 'vegetation',
        16: 'terrain',
        1: 'sky',
        10: 'person',
        17: 'rider',
        8: 'car',
        18: 'truck',
        19: 'bus',
        20: 'train',
        12: 'motorcycle',
        11: 'bicycle',
    },
    range(23),
)

# tue-mps/benchmark-vfm-ss, datasets/mappings.py; the same ids in the Mapillary converter of lhoyer (2023, tools)
VISTAS_CLASSES = {
    'Road': 'road',
    'Lane Marking - General': 'road',
    'Manhole': 'road',
    'Curb': 'sidewalk',
    'Sidewalk': 'sidewalk',
    'Building': 'building',
    'Wall': 'wall',
    'Fence': 'fence',
    'Pole': 'pole',
    'Utility Pole': 'pole',
    'Traffic Light': 'traffic light',
    'Traffic Sign (Front)': 'traffic sign',
    'Vegetation': 'vegetation',
    'Terrain': 'terrain',
    'Sky': 'sky',
    'Person': 'person',
    'Bicyclist': 'rider',
    'Motorcyclist': 'rider',
    'Other Rider': 'rider',
    'Car': 'car',
    'Truck': 'truck',
    'Bus': 'bus',
    'On Rails': 'train',
    'Motorcycle': 'motorcycle',
    'Bicycle': 'bicycle',
}
MAPILLARY = from_names(MapillaryDataset_v1.METAINFO['classes'], VISTAS_CLASSES)

# No published table of version 2.0 is known: ours gives the classes that it splits the class of 1.2 that they come from.
# Crosswalks are ignored as in 1.2, and so are the groups of poles and vehicles, which Cityscapes ignores.
VISTAS_V2_CLASSES = {
    **VISTAS_CLASSES,
    **{
        name: 'road'
        for name in MapillaryDataset_v2.METAINFO['classes']
        if name.startswith(LANE_MARKING) and name != f'{LANE_MARKING}Crosswalk'
    },
    **{name: 'traffic light' for name in MapillaryDataset_v2.METAINFO['classes'] if name.startswith('Traffic Light - ')},
    'Traffic Sign - Direction (Front)': 'traffic sign',
    'Traffic Sign - Parking': 'traffic sign',
    'Traffic Sign - Temporary (Front)': 'traffic sign',
    'Garage': 'building',
    'Person Group': 'person',
}
MAPILLARY_V2 = from_names(MapillaryDataset_v2.METAINFO['classes'], VISTAS_V2_CLASSES)
