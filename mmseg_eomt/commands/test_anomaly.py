"""How well a model's anomaly scores find what no class names, on all data that is there.

    python tools/test_anomaly.py CONFIG CHECKPOINT --data-root DIR… [--scores rba max …] [--temperatures 0.5 1 2]

Below the folders, RoadAnomaly21, RoadObstacle21, RoadAnomaly, Fishyscapes, LostAndFound, StreetHazards, BDD-Anomaly and the
course pack are found by their layout. Held-out classes are evaluated where test_dataloader of the config is a
HeldOutClassesDataset, or --anomaly-classes names them; and the mIoU on the config's own data. All scores are read from one
pass over a dataset. OUT/results.md has the table, results.json the numbers and curves.png the curves.

The thresholds of each score at all rates on each set are kept beside the checkpoint, for predict --threshold tpr=0.95@SET.

What is finished is kept in OUT/datasets: a run that was stopped goes on there, unless --fresh.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmseg.utils import register_all_modules

from mmseg_eomt.anomaly.metrics.counts import PixelScores
from mmseg_eomt.anomaly.results.curves import draw_curves
from mmseg_eomt.anomaly.results.evaluation import CLASSES, Part, Plan
from mmseg_eomt.anomaly.results.report import DatasetResult, Report, read_result, save_result
from mmseg_eomt.anomaly.results.settings import settings_digest
from mmseg_eomt.anomaly.results.thresholds import Calibration, calibration_file
from mmseg_eomt.anomaly.scored_config import class_of, segmentor_settings, with_anomaly_scores
from mmseg_eomt.anomaly.scores import OF_CLASSES, OF_SHARES, parse_scores
from mmseg_eomt.anomaly.tta import EoMTAnomalyTTAModel
from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.evaluations import Evaluations, add_run_options, check_run_options, results_folder, versions
from mmseg_eomt.data.dataset_configs import set_pipeline
from mmseg_eomt.models.eomt_head import EoMTHead
from mmseg_eomt.whole import check_writable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with errors_in_a_sentence('test_anomaly'):
        evaluate(args)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the model')
    parser.add_argument('checkpoint', help='its checkpoint; one of LoRA adapters too')
    parser.add_argument('--data-root', nargs='+', default=[], metavar='DIR', help='folders to look for the sets in')
    parser.add_argument('--presets', nargs='+', default=[], metavar='NAME', help='sets to evaluate (all that are found)')
    parser.add_argument('--scores', nargs='+', metavar='SCORE', help='such as rba eam max@0.5 (all that the model has)')
    parser.add_argument('--temperatures', nargs='+', type=float, default=[1.0], metavar='T', help='of class logits (1)')
    parser.add_argument('--anomaly-classes', nargs='+', default=[], metavar='CLASS', help='held-out classes of the own data')
    parser.add_argument('--exact', action='store_true', help='sort all scores in memory in place of counting them')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, by tta_pipeline of the config')
    parser.add_argument('--no-miou', action='store_true', help='anomalies alone')
    add_run_options(parser, 'anomaly')
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    if args.presets and not args.data_root:
        parser.error('--presets needs --data-root')
    return args


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate, and write and print the report."""
    register_all_modules()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    names = score_names(config, args.scores, args.temperatures)
    title = Path(args.config).stem
    out = results_folder(config, args, 'anomaly')
    check_writable(out)
    plan = make_plan(config, args)
    config = with_anomaly_scores(config, names)
    if args.tta:
        config.model = dict(type=EoMTAnomalyTTAModel.__name__, module=config.model)
    evaluation = AnomalyEvaluations(config, names, args, out)
    results = evaluation.results(plan.parts)
    if is_main_process():
        report = Report(title, settings_of(args), results, plan.notes)
        files = report.write(out)
        draw_curves(results, out / 'curves.png')
        print(f'\n{report.markdown()}\nWrote {files[0]}, {files[1].name} and curves.png')
        if evaluation.thresholds.is_file():
            print(f'Thresholds for tools/predict.py --calibration {evaluation.thresholds}')


def score_names(config: Config, given: Sequence[str] | None, temperatures: Sequence[float]) -> list[str]:
    """Names of the scores: by default those of the classes that suit the model, and those of the queries that it has.

    Raises:
        ValueError: If one is no score, or a temperature is not above 0.
    """
    head = segmentor_settings(config).get('decode_head')
    if given is None:
        kind = class_of(head)
        if kind is not None and issubclass(kind, EoMTHead):
            given = [*OF_CLASSES, 'eam', 'void', *(['uno'] if head.get('negative_class') else [])]
        else:
            given = [name for name in OF_CLASSES if name not in OF_SHARES]
    every = [name if '@' in name else f'{name}@{t:f}' for t in temperatures for name in given]
    return list(map(str, parse_scores(every)))


def make_plan(config: Config, args: argparse.Namespace) -> Plan:
    """Find what there is to evaluate on.

    Raises:
        ValueError: If there is nothing.
    """
    if args.tta:
        if not config.get('tta_pipeline'):
            raise ValueError(f'{args.config} has no tta_pipeline: --tta takes the augmentations from there.')
        config = with_pipeline(config, config.tta_pipeline)
    plan = Plan(config)
    plan.add_presets(args.data_root, args.presets)
    plan.add_own(args.anomaly_classes)
    if not plan.parts:
        where = f'below {", ".join(args.data_root)}' if args.data_root else 'since --data-root names no folder'
        raise ValueError(
            ' '.join([f'There is no set of anomalies to evaluate on {where}, and no class is held out.', *plan.notes])
        )
    if not args.no_miou:
        plan.add_classes()
    return plan


def with_pipeline(config: Config, pipeline: list) -> Config:
    """A copy of a config whose test and validation data go through another pipeline."""
    config = Config(config.to_dict(), filename=config.filename)
    for name in ('test_dataloader', 'val_dataloader'):
        set_pipeline((config.get(name) or {}).get('dataset') or {}, pipeline)
    return config


class AnomalyEvaluations(Evaluations):
    """A model evaluated on one dataset after another, with its thresholds.

    Args:
        config: For the Runner.
        names: Of the scores.
        args: Of the command.
        out: Where finished datasets are kept.

    Attributes:
        thresholds: File of the checkpoint's thresholds.
    """

    def __init__(self, config: Config, names: list[str], args: argparse.Namespace, out: Path) -> None:
        super().__init__(config, args, out)
        self.names = names
        self.thresholds = calibration_file(args.checkpoint, out)

    def results(self, parts: Sequence[Part]) -> list[DatasetResult]:
        """Of each dataset, kept ones and new ones."""
        # read before any process can write: all of them must decide alike
        files = {part.name: self.out / 'datasets' / f'{part.name}.json' for part in parts}
        keys = {part.name: self.key(part) for part in parts}
        kept = {} if self.args.fresh else {name: read_result(files[name], keys[name]) for name in files}
        results = []
        for part in parts:
            result = kept.get(part.name)
            if result is None:
                result = self.evaluate(part)
                if is_main_process():
                    save_result(files[part.name], result, keys[part.name])
            elif is_main_process():
                print(f'{part.name} is finished: {files[part.name]} is read. Give --fresh to evaluate and calibrate again.')
            results.append(result)
        return results

    def key(self, part: Part) -> str:
        """What a dataset's result depends on, in a few letters."""
        names = self.names if part.name != CLASSES else []
        return self.key_of(part.dataset, names, self.args.exact, self.args.tta, part.components, part.images)

    def evaluate(self, part: Part) -> DatasetResult:
        """Evaluate on a dataset."""
        evaluator: dict[str, Any] = dict(type='IoUMetric', iou_metrics=['mIoU'])
        if part.name != CLASSES:
            options = dict(components=part.components, exact=self.args.exact)
            evaluator = dict(type='AnomalyMetric', scores=self.names, **options)
        metrics, runner = self.test(part.dataset, evaluator, f'{part.name}: {part.images} images of {part.source}')
        result = DatasetResult(part.name, part.source, part.images)
        if part.name == CLASSES:
            result.classes = {name: float(metrics[name]) for name in ('mIoU', 'mAcc', 'aAcc')}
        else:
            finished = runner.test_evaluator.metrics[0].finished
            result.add_scores(metrics, finished)
            if is_main_process() and not self.args.tta:
                self.calibrate(result, finished, settings_digest(self.config, part.dataset))
        return result

    def calibrate(self, result: DatasetResult, finished: dict[str, PixelScores], settings: str) -> None:
        """Keep a dataset's thresholds with the checkpoint, for ``tools/predict.py --threshold tpr=0.95@DATASET``."""
        try:
            calibration = Calibration.update(self.thresholds, self.args.checkpoint, self.digest)
            for name in result.points:  # of the scores whose metrics are defined
                calibration.add(name, finished[name], result.name, result.images, settings)
            calibration.save(self.thresholds)
        except (OSError, ValueError) as error:  # the evaluation, which may have taken long, is not to be lost
            print_log(f'Thresholds are not kept in {self.thresholds}: {error}', 'current', logging.WARNING)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the report says of the evaluation."""
    options = [name for name in ('exact', 'tta') if getattr(args, name)]
    if args.cfg_options:
        options += [f'{name}={value}' for name, value in args.cfg_options.items()]
    return dict(config=args.config, checkpoint=args.checkpoint, options=options or 'none', versions=versions())
