"""The published sets of road anomalies as datasets of the toolbox."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from mmseg_eomt.anomaly.data.frames import Frame, anomalous, chosen, find_presets, frames_in, published, root_of, shown
from mmseg_eomt.anomaly.data.presets import IGNORED, SURE, Preset, checked_map, preset_of

OF_THE_PRESET = {'data_prefix', 'ann_file', 'img_suffix', 'seg_map_suffix', 'reduce_zero_label'}
UNKNOWN = 254  # what an id becomes that would else pass for a label; the metric refuses it


@DATASETS.register_module()
class AnomalyDataset(BaseSegDataset):
    """A set of road images with anomalies, labelled 0 (inlier), 1 (anomaly) and 255 (ignored), for :class:`.AnomalyMetric`.

    ``metainfo['classes']`` are those of the model to evaluate, not of the labels. Images may be of several sizes, so that
    ``batch_size`` is 1. By default the frames are those that the set's protocol evaluates: the public ``validation*`` frames
    of RoadAnomaly21 and RoadObstacle21, LostAndFound without people and bicycles, those of BDD100K that hold a train,
    motorcycle or bicycle, and else all.

    Args:
        preset: ``'road_anomaly_21'``, ``'road_obstacle_21'``, ``'road_anomaly'``, ``'fishyscapes_laf'``,
            ``'fishyscapes_static'``, ``'lost_and_found'``, ``'street_hazards'``, ``'bdd_anomaly'``,
            ``'course_road_anomaly'``, ``'course_road_anomaly_21'``, ``'course_road_obstacle_21'``,
            ``'course_fishyscapes_laf'``, ``'course_fishyscapes_static'``; or a dict, see :func:`.preset_of`.
        data_root: Folder of the set, or the one that holds it.
        frames: Names of the frames to evaluate, or patterns such as ``'validation*'``, in place of the preset's; or a text
            file with one per line, relative to ``data_root``. A name is a file's without what all files of the set have in
            common (``t5/300`` with its folder for StreetHazards). Default: the preset's.
        label_map: What the stored ids become, in place of the preset's. Default: the preset's.
        metainfo: ``dict(classes=…)`` of the model, and ``palette``. Default: the 19 of Cityscapes; for StreetHazards its 13,
            for BDD-Anomaly the 16 that remain.
        kwargs: As of :class:`BaseSegDataset`; layout, suffixes and ids are the preset's.

    Raises:
        ValueError: If the preset is unknown; and, when the data is loaded and before anything runs, if no images are found
            or labels are missing or hidden.
    """

    explains_missing_data = True

    def __init__(
        self,
        preset: str | Mapping[str, Any],
        data_root: str | None = None,
        frames: str | Sequence[str] | None = None,
        label_map: Mapping[int, int] | None = None,
        metainfo: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        fixed = sorted(OF_THE_PRESET & kwargs.keys())
        if fixed:
            raise ValueError(
                f'AnomalyDataset takes no {", ".join(fixed)}: the preset knows it, and frames lists the images.'
            )
        self.preset = preset_of(preset)
        if label_map is not None:
            self.preset = replace(self.preset, label_map=checked_map(label_map))
        self.frames = frames
        given = dict(metainfo or {})
        if 'classes' in given:
            given.setdefault('palette', [])  # random colours, rather than those of other classes
        super().__init__(metainfo={**self.preset.metainfo, **given}, data_root=data_root, **kwargs)

    def get_label_map(self, new_classes: Sequence[str] | None = None) -> dict[int, int]:
        """What the loader of the labels makes of the stored ids; of what classes there are, it knows nothing."""
        unknown = {label: UNKNOWN for label in SURE if label != IGNORED and label not in self.preset.label_map}
        return {old: new for old, new in self.preset.label_map.items() if old != new} | unknown

    @property
    def known_ids(self) -> tuple[int, ...]:
        """The ids that label files may hold."""
        return tuple(sorted({*self.preset.label_map, IGNORED}))

    def load_data_list(self) -> list[dict[str, Any]]:
        """Image and label of each frame."""
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        frames = self._select(self._find())
        return [dict(img_path=f.image, seg_map_path=f.label, seg_fields=[], **common) for f in frames]

    def _find(self) -> list[Frame]:
        """All frames in the folder."""
        if self.data_root is None:
            raise ValueError(f"Where is {self.preset.name}? Set data_root to the set's folder.")
        root = root_of(self.preset, self.data_root)
        frames = frames_in(self.preset, root)
        if not any(frame.label for frame in frames):
            other = _what_fits(self.preset.name, self.data_root)
            if other or not frames:
                raise ValueError(_nothing_found(self.preset, self.data_root, other))
        return frames

    def _select(self, frames: list[Frame]) -> list[Frame]:
        """The frames to evaluate, all of which have labels."""
        patterns = self._patterns()
        selected = published(self.preset, frames) if patterns is None else chosen(frames, patterns)
        if self.preset.partial and patterns is None:
            selected = [frame for frame in selected if frame.label]
        without = [frame.name for frame in selected if not frame.label]
        if without or not selected:
            raise ValueError(self._no_labels(without or [frame.name for frame in frames], len(selected) or len(frames)))
        return anomalous(self.preset, selected) if self.preset.only_anomalous and patterns is None else selected

    def _patterns(self) -> list[str] | None:
        if not isinstance(self.frames, str):
            return None if self.frames is None else list(self.frames)
        listed = Path(self.data_root or '') / self.frames
        if not listed.is_file():
            raise ValueError(f'frames names a text file, and {listed} is none: give a file, or a list of names.')
        return [line.strip() for line in listed.read_text(encoding='utf-8').splitlines() if line.strip()]

    def _no_labels(self, without: list[str], num_frames: int) -> str:
        """Why images cannot be evaluated."""
        start = f'{len(without)} of {num_frames} images of {self.preset.name} in {self.data_root} '
        labels = ' or '.join(dict.fromkeys(layout.labels for layout in self.preset.layouts))
        if self.preset.hidden:
            return (
                f'{start}have no public labels ({shown(without)}): submit their scores to the benchmark (tools/predict.py '
                f'--format smiyc), or evaluate on the {" ".join(self.preset.frames)} frames, which the benchmark publishes '
                f'with {labels}.'
            )
        return f'{start}have no label ({shown(without)}): it should be {labels} in that folder.'


def _nothing_found(preset: Preset, data_root: str, other: str) -> str:
    """Why a folder is not that of a preset."""
    if not Path(data_root).is_dir():
        return f'{data_root} (data_root of {preset.name}) is no folder.'
    patterns = ' or '.join(f'{one.images} with {one.labels}' for one in preset.layouts)
    cure = other or preset.preparation or 'check data_root, or unpack the set there'
    return f'{data_root} holds no labelled images of {preset.name}, which would be {patterns}: {cure}.'


def _what_fits(name: str, data_root: str) -> str:
    """Which other presets a folder fits, in words; nothing if it fits none."""
    found = [one for one in find_presets(data_root) if one['preset'] != name]
    fits = [f'preset={one["preset"]!r} with data_root={one["data_root"]!r}' for one in found[:3]]
    return f'what is there fits {" or ".join(fits)}' if fits else ''
