"""Classes of a labelled dataset as anomalies: trained without them, evaluated on finding them."""

from collections.abc import Sequence
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.anomaly.data.frames import with_ids
from mmseg_eomt.anomaly.data.presets import ANOMALY, IGNORED, INLIER

SPLITS = ('train', 'anomaly')
IMAGES = ('all', 'with', 'without')
OF_THE_FILES = {'data_root', 'data_prefix', 'ann_file', 'metainfo', 'img_suffix', 'seg_map_suffix', 'reduce_zero_label'}


@DATASETS.register_module()
class HeldOutClassesDataset(BaseSegDataset):
    """Any labelled dataset of the toolbox with some of its classes held out, as anomalies that a model does not know.

    ``metainfo['classes']`` are the remaining classes for both splits, so that ``num_classes`` of the model is their number.
    The labels are, with ``split='train'``, the remaining classes, and held-out ones are ignored: for training and mIoU. With
    ``split='anomaly'`` they are 1 where a class is held out, 0 where it is another one and 255 where the dataset ignores it:
    for :class:`.AnomalyMetric`::

        dict(type='HeldOutClassesDataset', dataset=dict(type='CityscapesDataset', data_root=…, data_prefix=…),
             anomaly_classes=['bicycle'], split='train', pipeline=…)

    Args:
        dataset: Config of a :class:`BaseSegDataset`, with its own ``reduce_zero_label``, ``metainfo``, ``ann_file``, ….
        anomaly_classes: Names of the classes to hold out.
        split: ``'train'`` or ``'anomaly'``. Default: ``'anomaly'``.
        images: ``'all'``; or only images ``'with'`` or ``'without'`` a held-out class, for which all labels are read once.
            BDD-Anomaly trains on those without. Default: ``'all'``.
        pipeline: Of this dataset. Default: that in ``dataset``.
        kwargs: ``indices``, ``lazy_init``, ``serialize_data``, ``test_mode`` and ``max_refetch`` of :class:`BaseSegDataset`.

    Raises:
        ValueError: If a name is no class of the dataset, none is held out or fewer than 2 remain, or ``split`` or ``images``
            is none of the above, or leaves no image.
    """

    def __init__(
        self,
        dataset: dict[str, Any],
        anomaly_classes: Sequence[str],
        split: str = 'anomaly',
        images: str = 'all',
        pipeline: list | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value, allowed in (('split', split, SPLITS), ('images', images, IMAGES)):
            if value not in allowed:
                raise ValueError(f'{name} is one of {", ".join(map(repr, allowed))}, got {value!r}.')
        misplaced = sorted(OF_THE_FILES & kwargs.keys())
        if misplaced:
            raise ValueError(f'{", ".join(misplaced)} of HeldOutClassesDataset: put it into dataset=dict(…).')
        config = dict(dataset)
        inner_pipeline = config.pop('pipeline', [])
        self._config = dict(config, pipeline=[], lazy_init=True)
        kind = DATASETS.get(config['type']) if isinstance(config.get('type'), str) else config.get('type')
        if not (isinstance(kind, type) and issubclass(kind, BaseSegDataset)):
            raise ValueError(
                f'dataset is the config of one labelled dataset of the toolbox, got type={config.get("type")!r}: hold the '
                f'classes out of each dataset that it wraps.'
            )
        inner = DATASETS.build(self._config)
        classes = list(inner.metainfo.get('classes') or ())
        held_out = _checked(anomaly_classes, classes, type(inner).__name__)
        palette = inner.metainfo['palette']
        self.split, self.images = split, images
        self._labels = _labels_of(inner, [name in held_out for name in classes], split)
        self._held_out = [old for old, new in _classes_by_id(inner).items() if classes[new] in held_out]
        super().__init__(
            metainfo=dict(
                classes=tuple(name for name in classes if name not in held_out),
                palette=[list(colour) for name, colour in zip(classes, palette) if name not in held_out],
            ),
            reduce_zero_label=inner.reduce_zero_label,
            pipeline=inner_pipeline if pipeline is None else pipeline,
            **kwargs,
        )

    def get_label_map(self, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """What the loader of the labels makes of the dataset's ids, after ``reduce_zero_label``."""
        return self._labels

    @property
    def known_ids(self) -> tuple[int, ...]:
        """The ids that label files may hold."""
        return tuple(sorted({*self._stored(self._labels), IGNORED} | ({0} if self.reduce_zero_label else set())))

    def _stored(self, ids: Sequence[int] | dict[int, int]) -> list[int]:
        """Ids as they are in the files, of those after ``reduce_zero_label``."""
        return [one + 1 for one in ids if one != IGNORED] if self.reduce_zero_label else list(ids)

    def load_data_list(self) -> list[dict[str, Any]]:
        """The dataset's samples, with these labels."""
        inner = DATASETS.build(self._config)
        inner.full_init()
        samples = [inner.get_data_info(i) for i in range(len(inner))]
        for sample in samples:
            sample.update(label_map=self.label_map)
        if self.images == 'all':
            return samples
        held = with_ids([sample['seg_map_path'] for sample in samples], self._stored(self._held_out))
        kept = [sample for sample, is_held in zip(samples, held) if is_held == (self.images == 'with')]
        if not kept:
            raise ValueError(f'None of {len(samples)} images is {self.images} a held-out class: set images to another one.')
        return kept


def _checked(names: Sequence[str], classes: list[str], kind: str) -> set[str]:
    """The names of the held-out classes, once they are sure to be some of the dataset's."""
    if isinstance(names, str):
        raise ValueError(f'anomaly_classes is a list of names, got the text {names!r}: write [{names!r}].')
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ValueError(
            f'anomaly_classes has {", ".join(map(repr, unknown))}, and the classes of {kind} are {", ".join(classes)}.'
        )
    if not names:
        raise ValueError(f'anomaly_classes is empty: hold out at least one of {", ".join(classes)}.')
    remaining = len(classes) - len(set(names))
    if remaining < 2:
        raise ValueError(f'anomaly_classes leaves {remaining} of {len(classes)} classes, and a model needs at least 2.')
    return set(names)


def _classes_by_id(dataset: BaseSegDataset) -> dict[int, int]:
    """The class of each id that has one, after ``reduce_zero_label``."""
    num_classes = len(dataset.metainfo['classes'])
    label_map = dataset.label_map or {i: i for i in range(num_classes)}
    return {old: new for old, new in label_map.items() if 0 <= new < num_classes}


def _labels_of(dataset: BaseSegDataset, held_out: list[bool], split: str) -> dict[int, int]:
    """New labels of a dataset's ids, after ``reduce_zero_label``."""
    if split == 'train':
        kept = [i for i, is_held in enumerate(held_out) if not is_held]
        new_labels = [IGNORED if is_held else kept.index(i) for i, is_held in enumerate(held_out)]
    else:
        new_labels = [ANOMALY if is_held else INLIER for is_held in held_out]
    labels = dict.fromkeys(dataset.label_map or (), IGNORED)  # classes that the dataset itself leaves out
    labels.setdefault(dataset.ignore_index, IGNORED)
    return labels | {old: new_labels[new] for old, new in _classes_by_id(dataset).items()}
