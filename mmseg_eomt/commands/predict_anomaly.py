"""Anomaly maps of ``tools/predict.py``: its options, and what is written beside labels and overlays."""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmseg.structures import SegDataSample

from mmseg_eomt.anomaly.results.maps import STEPS, Component, Limits, find_components, limits_of, to_uint16
from mmseg_eomt.anomaly.results.settings import settings_digest
from mmseg_eomt.anomaly.results.submissions import FORMATS, BravoWriter, SmiycWriter, check_h5py
from mmseg_eomt.anomaly.results.thresholds import FORMS, Calibration, MissingThreshold, ThresholdRule, calibration_file
from mmseg_eomt.anomaly.scored_config import with_anomaly_scores
from mmseg_eomt.anomaly.scores import NAMES, Score
from mmseg_eomt.anomaly.segmentor import anomaly_maps
from mmseg_eomt.commands.predict_inputs import write
from mmseg_eomt.visualization import UNKNOWN, heat_map, outlined, with_colour_bar
from mmseg_eomt.weights.sources import checkpoint_digest
from mmseg_eomt.whole import whole_file

HEAT_MAPS = 'anomaly/heatmaps'
MIN_AREA = 50  # pixels; SegmentMeIfYouCan's obstacle track drops smaller predictions
NEEDED = ('threshold', 'heat_range', 'calibrate', 'calibrate_images', 'calibration', 'format', 'method', 'dataset')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of anomaly maps."""
    group = parser.add_argument_group('anomalies')
    group.add_argument(
        '--anomaly', metavar='SCORE', help=f'also map an anomaly score: {", ".join(NAMES)}; with a temperature: rba@0.5'
    )
    group.add_argument('--threshold', metavar='RULE', help=f'also masks and components: {FORMS}')
    group.add_argument('--min-area', type=int, default=MIN_AREA, help=f'pixels; smaller components are dropped ({MIN_AREA})')
    group.add_argument('--score-format', choices=('png', 'npy'), default='png', help='score maps: 16-bit PNG, or float32')
    group.add_argument(
        '--heat-range', type=float, nargs=2, metavar=('LOW', 'HIGH'), help='of the colours (sure inlier to highest score)'
    )
    group.add_argument(
        '--calibrate', action='store_true', help='find the thresholds of false positive rates on val_dataloader first'
    )
    group.add_argument('--calibrate-images', type=Path, metavar='FOLDER', help='the same on images without anomalies')
    group.add_argument('--calibration', type=Path, metavar='FILE', help='of the thresholds (beside a local checkpoint)')
    group.add_argument('--format', choices=FORMATS, help="write a benchmark's files, and nothing else")
    group.add_argument('--method', help="name of the method in the benchmark's files (that of the config)")
    group.add_argument('--dataset', help='name of the dataset in files of smiyc, such as AnomalyTrack-all')


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError where options do not go together."""
    given = [f'--{name.replace("_", "-")}' for name in NEEDED if getattr(args, name)]
    if args.anomaly is None:
        if given:
            raise ValueError(f'{", ".join(given)} belong to an anomaly score: add --anomaly rba, say.')
        return
    Score.parse(args.anomaly)
    if args.threshold is not None:
        ThresholdRule.parse(args.threshold)
    if args.format and args.threshold:
        raise ValueError("--format writes a benchmark's files, which have no threshold: leave out --threshold.")
    if args.format == 'smiyc':
        check_h5py()
        check_name('dataset', args.dataset or '')
        check_name('method', method_of(args))
    if args.min_area < 1:
        raise ValueError(f'--min-area is 1 or more, got {args.min_area}.')
    if args.heat_range and not args.heat_range[0] < args.heat_range[1]:
        raise ValueError(f'--heat-range is a lower and a higher score, got {args.heat_range}.')
    if args.threshold is not None and not (args.calibrate or args.calibrate_images):
        find_threshold(args)  # before the model is made


def check_name(option: str, name: str) -> None:
    """Raise ValueError if what a benchmark's folder is called is no name."""
    if Path(name).name != name or not name:
        raise ValueError(
            f'--format smiyc needs --{option} NAME, which a folder is called, such as AnomalyTrack-all; got {name!r}.'
        )


def method_of(args: argparse.Namespace) -> str:
    """Name of the method in a benchmark's files."""
    return args.method or Path(args.config).stem


def results(args: argparse.Namespace) -> list[str]:
    """The folders of results."""
    if args.format:
        return ['bravo'] if args.format == 'bravo' else [f'anomaly_p/{method_of(args)}/{args.dataset}']
    return ['overlays', 'labels', *(['anomaly'] if args.anomaly is not None else [])]


def base_config(args: argparse.Namespace) -> Config:
    """The config that is given, with the settings that are to be changed."""
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    return config


def model_config(args: argparse.Namespace) -> Config:
    """The config of the model, which is asked for the score where it has to be."""
    config = base_config(args)
    return config if args.anomaly is None else with_anomaly_scores(config, [args.anomaly])


class AnomalyMap(NamedTuple):
    """A score map (H, W), float32, and, with a threshold, the mask (H, W) and its regions."""

    scores: np.ndarray
    mask: np.ndarray | None = None
    components: list[Component] | None = None


class AnomalyResults:
    """Writes the anomaly maps of images and frames.

    Args:
        args: Of the command.
        num_classes: K.

    Raises:
        ValueError: If the threshold is not calibrated.
    """

    def __init__(self, args: argparse.Namespace, num_classes: int) -> None:
        self.args = args
        self.score = Score.parse(args.anomaly)
        self.limits: Limits = limits_of(self.score, num_classes)
        self.folder: Path = args.out / 'anomaly'
        self.components: dict[str, list[dict[str, Any]]] = {}
        self.threshold = None if args.threshold is None else find_threshold(args)
        self.submission: SmiycWriter | BravoWriter | None = None
        if args.format == 'smiyc':
            self.submission = SmiycWriter(args.out, method_of(args), args.dataset, self.limits)
        elif args.format == 'bravo':
            self.submission = BravoWriter(args.out, self.limits)
        else:
            self._describe(num_classes)

    def _describe(self, num_classes: int) -> None:
        """Say beside the maps what their values mean."""
        low, inlier, high = self.limits
        known: dict[str, Any] = dict(score=str(self.score), num_classes=num_classes, checkpoint=self.args.checkpoint)
        known.update(low=low, inlier=inlier, high=high, format=self.args.score_format)
        if self.args.score_format == 'png':
            known['formula'] = f'score = low + value / {STEPS} * (high - low)'
        if self.threshold is not None:
            known.update(rule=self.args.threshold, threshold=self.threshold, min_area=self.args.min_area)
        write_json(self.folder / 'scores.json', known)

    def read(self, sample: SegDataSample) -> AnomalyMap:
        """The map of a predicted sample."""
        scores = anomaly_maps(sample, [self.args.anomaly])[0].float().cpu().numpy()
        if self.threshold is None:
            return AnomalyMap(scores)
        return AnomalyMap(scores, *find_components(scores, self.threshold, self.args.min_area))

    def picture(self, image: np.ndarray, found: AnomalyMap) -> np.ndarray:
        """Heat map over an image (H, W, 3), BGR, with its colour bar."""
        low, high = self.args.heat_range or self.limits[1:]
        picture = heat_map(image[..., ::-1], found.scores, low, high)
        if found.mask is not None:
            picture = outlined(picture, found.mask, UNKNOWN)
        ends = ('known', 'unknown')
        return with_colour_bar(picture, low, high, str(self.score), ends, self.threshold)[..., ::-1]

    def write(self, name: str, found: AnomalyMap) -> None:
        """Write the scores and, with a threshold, the mask of an image or a frame, and note its components."""
        path = self.folder / 'scores' / f'{name}.{self.args.score_format}'
        if self.args.score_format == 'png':
            write(path, to_uint16(found.scores, self.limits))
        else:
            with whole_file(path) as new:
                np.save(new, found.scores)
        if found.mask is not None and found.components is not None:
            write(self.folder / 'masks' / f'{name}.png', found.mask.astype(np.uint8) * 255)
            self.components[name] = [component.as_dict() for component in found.components]

    def finish(self) -> None:
        """Write the components of all images."""
        if self.threshold is not None:
            lines = [f'{json.dumps(name)}: {json.dumps(found)}' for name, found in self.components.items()]
            with whole_file(self.folder / 'components.json') as new:  # a line for each image
                new.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


def find_threshold(args: argparse.Namespace) -> float:
    """The value of ``--threshold``, calibrated where it is not a value itself.

    Raises:
        ValueError: If it is not calibrated, with the command that does it.
    """
    rule = ThresholdRule.parse(args.threshold)
    if rule.kind == 'value':
        return rule.number
    path, digest = thresholds_file(args), checkpoint_digest(args.checkpoint)
    tool = 'tools/predict.py' if rule.kind == 'fpr' else 'tools/test_anomaly.py'
    options = f'--anomaly {args.anomaly} --calibrate' if rule.kind == 'fpr' else '--data-root DATA'
    command = f'python {tool} {args.config} {args.checkpoint} {options}'
    score = str(Score.parse(args.anomaly))
    try:
        calibration = Calibration.read(path, digest)
        threshold = calibration.threshold(score, rule)
    except FileNotFoundError:
        reason = f'{path} is not there, which holds the thresholds of {args.checkpoint}.'
    except MissingThreshold as error:
        reason = str(error)
    else:
        config = base_config(args)
        settings = calibration.settings(score, rule)
        if settings and settings != settings_digest(config, config.test_dataloader.dataset):
            warnings.warn(
                f'The threshold {rule} in {path} is of images that were prepared otherwise than those of {args.config} '
                f'(test pipeline, test_cfg, data_preprocessor), so that its rate may be another one: run {command}',
                stacklevel=2,
            )
        return threshold
    hint = ' (--calibrate-images FOLDER: on your own images without anomalies)' if rule.kind == 'fpr' else ''
    raise ValueError(f'{reason} Run {command}{hint}, name another file with --calibration, or give a value of the score.')


def thresholds_file(args: argparse.Namespace) -> Path:
    """Where the thresholds are kept."""
    return args.calibration or calibration_file(args.checkpoint, args.out)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON, whole."""
    with whole_file(path) as new:
        new.write_text(json.dumps(content, indent=1), encoding='utf-8')
