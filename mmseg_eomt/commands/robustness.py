"""How much worse a model is in other cities and weather, and on corrupted images.

    python tools/robustness.py CONFIG CHECKPOINT [--data-root data] [--severities 1 3 5] --out DIR

CONFIG is that of any model of MMSegmentation. It is evaluated on its own data (test_dataloader), on the validation sets of
configs/_base_/domains that are found below --data-root and have its classes, and on its own data with corruptions of
ImageNet-C and Cityscapes-C, made as images are read. All data goes through the test pipeline of CONFIG, and the model is
loaded once.

OUT/results.md has the tables, and results.json the numbers. What is finished is kept in OUT/parts: a run that was stopped
goes on there, unless --fresh.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmseg.utils import register_all_modules
from tqdm import tqdm

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.commands.evaluations import Evaluations, add_run_options, check_run_options, results_folder, versions
from mmseg_eomt.domains.corruptions import FAMILIES, KINDS
from mmseg_eomt.domains.report import METRICS, Report, Result
from mmseg_eomt.domains.robustness import Part, Plan
from mmseg_eomt.whole import check_writable, keep, kept


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the model')
    parser.add_argument('checkpoint', help='its checkpoint; one of adapters too')
    parser.add_argument('--data-root', default='data', metavar='DIR', help='folder of the domains (data)')
    parser.add_argument('--domains', nargs='*', metavar='NAME', help='such as bdd100k acdc_fog (all that are found)')
    parser.add_argument(
        '--corruptions',
        nargs='*',
        default=FAMILIES,
        metavar='NAME',
        help=f'families ({", ".join(FAMILIES)}) or kinds: {", ".join(KINDS)} (all)',
    )
    parser.add_argument('--severities', nargs='+', type=int, default=[1, 3, 5], metavar='1-5', help='of corruptions (1 3 5)')
    add_run_options(parser, 'robustness')
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with errors_in_a_sentence('robustness'):
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate, and write and print the report."""
    register_all_modules()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    out = results_folder(config, args, 'robustness')
    check_writable(out)
    plan = Plan(config)
    plan.add_domains(args.data_root, args.domains)
    plan.add_corruptions(args.corruptions, args.severities)
    results = results_of(plan.parts, Evaluations(config, args, out))
    if is_main_process():
        options = ' '.join(f'{name}={value}' for name, value in (args.cfg_options or {}).items())
        numbers = ', '.join(f'{name} {number}' for name, number in versions().items())
        settings = dict(config=args.config, checkpoint=args.checkpoint, options=options or 'none', versions=numbers)
        report = Report(Path(args.config).stem, settings, results, plan.notes)
        files = report.write(out)
        print(f'\n{report.markdown()}\nWrote {files[0]} and {files[1].name}')


def results_of(parts: Sequence[Part], evaluations: Evaluations) -> list[Result]:
    """Of each dataset, kept ones and new ones."""
    fresh = evaluations.args.fresh
    keys = [evaluations.key_of(part.dataset, part.images) for part in parts]
    files = [evaluations.out / 'parts' / f'{part.name.replace(" ", "_")}_{part.severity}.json' for part in parts]
    # read before any process can write: all of them must decide alike
    finished = [None if fresh else kept(file, key) for file, key in zip(files, keys)]
    results = []
    for i, part in enumerate(tqdm(parts, 'Datasets', unit='sets', disable=not is_main_process())):
        metrics = finished[i]
        if metrics is None:
            metrics = metrics_of(part, evaluations)
            if is_main_process():
                keep(files[i], keys[i], metrics)
        results.append(Result(part.name, part.severity, part.images, metrics))
    if is_main_process() and any(finished):
        print(
            f'{sum(map(bool, finished))} datasets were finished and are read from {files[0].parent}; --fresh repeats them.'
        )
    return results


def metrics_of(part: Part, evaluations: Evaluations) -> dict[str, float]:
    """mIoU, mAcc and aAcc on a dataset, in per cent."""
    severity = f' of severity {part.severity}' if part.severity else ''
    metrics, _ = evaluations.test(part.dataset, dict(type=part.metric), f'{part.name}{severity}: {part.images} images')
    return {name: float(metrics[name]) for name in METRICS}
