"""Names of classes across datasets: whether an outlier is something that the model knows."""

import re
from collections.abc import Iterable, Sequence

SAME = (  # what one dataset calls as the first name, and others as the next ones
    ('road', 'street', 'route', 'roadway'),
    ('sidewalk', 'pavement', 'footpath'),
    ('building', 'house', 'skyscraper'),
    ('traffic light', 'traffic signal'),
    ('traffic sign', 'stop sign', 'street sign', 'road sign'),
    ('vegetation', 'tree', 'plant', 'palm', 'palm tree', 'bush', 'hedge'),
    ('terrain', 'grass', 'earth', 'soil', 'field'),
    ('person', 'pedestrian', 'people', 'human', 'man', 'woman', 'child', 'boy', 'girl'),
    ('rider', 'cyclist', 'bicyclist', 'motorcyclist'),
    ('car', 'automobile', 'van', 'minivan', 'taxi', 'cab', 'jeep', 'suv'),
    ('truck', 'lorry', 'pickup truck', 'pickup'),
    ('bus', 'minibus', 'school bus'),
    ('train', 'tram', 'on rails'),
    ('motorcycle', 'motorbike', 'motor scooter', 'moped'),
    ('bicycle', 'bike'),
)


def canonical(name: str) -> str:
    """A name as it compares: ``'Motorbike'``, ``'motor_bike'`` and ``'motorbike (vehicle)'`` are one, of ``motorcycle``."""
    plain = _plain(name)
    return _FIRST.get(plain, plain)


def known_names(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those names that are among the known classes, under whatever spelling or synonym.

    Args:
        names: Of the outliers.
        known: The model's classes.
    """
    ours = set(map(canonical, known))
    return [name for name in names if canonical(name) in ours]


def _plain(name: str) -> str:
    return re.sub(r'\(.*?\)|[^a-z0-9]', '', name.lower())


_FIRST = {_plain(name): _plain(names[0]) for names in SAME for name in names}
