#!/usr/bin/env python
"""Finding a class that a model has never been told of, on real images: CamVid with one class held out.

    python benchmarks/anomaly_camvid.py [--classes bicycle car] [--seeds 0 1 2] [--variants base rba_head …] [--fresh]

For each class that is held out and each seed: the small model of configs/eomt_tiny_cityscapes.py, randomly initialised,
trains with that class ignored in all masks. Then it goes on with outliers in several ways, all of the same length: patches
of other training images are pasted, so that no data are needed and outliers are of another family than what is looked for.
Each model is evaluated on the validation split: how well each score finds the held-out class among all labelled pixels, and
the mIoU over the classes that it knows. It prints tables of means over the seeds with the lowest and highest, and writes
benchmarks/results/anomaly_camvid.json; a trial with some classes, seeds or variants writes into work_dirs/anomaly_camvid.
What is finished is kept: a run that was stopped goes on, and --fresh starts over.

Learning rate and probability of outliers were set beforehand, not by results.
"""

import argparse
import copy
import json
import os
import shutil
import statistics
import sys
from importlib import metadata
from pathlib import Path

os.environ['CUDA_VISIBLE_DEVICES'] = ''  # mmengine picks its device when it is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import torch
from lora_camvid import run, stage, train
from mmengine.config import Config

import mmseg_eomt  # noqa: F401  registers models and hooks, and lets torch.load read mmengine's checkpoints

ROOT = Path(__file__).resolve().parents[1]
WORK_DIR = Path('work_dirs/anomaly_camvid')
RESULTS = Path('benchmarks/results/anomaly_camvid.json')
CLASSES = ('sky', 'building', 'pole', 'road', 'sidewalk', 'vegetation', 'traffic sign', 'fence', 'car', 'person', 'bicycle')
HELD_OUT, SEEDS = ('bicycle', 'car'), (0, 1, 2)
BASE_ITERS, ITERS, WARM_UP = 600, 150, 10
LR, PROB = 1e-3, 0.5
SCORES = ('rba', 'rba_sum', 'max', 'msp', 'entropy', 'energy', 'eam', 'void')
HEADS = ['decode_head.class_head', 'decode_head.mask_head']
HEAD_ALONE = dict(type='LoRAHook', target_modules=[], trainable_modules=HEADS)
WITH_LORA = dict(type='LoRAHook', r=16, lora_alpha=32, lora_dropout=0.05, trainable_modules=HEADS)
RBA = dict(loss_outlier=dict(type='OutlierLoss'))
VARIANTS = {  # hook and options of the head
    'base': None,
    'rba_head': (HEAD_ALONE, RBA),
    'rba_lora': (WITH_LORA, RBA),
    'rba_lora_arcface': (WITH_LORA, dict(RBA, cosine_head=dict(scale=16.0, margin=0.2))),
}


def known_classes(held_out: str) -> tuple[str, ...]:
    """The classes that CamVid has and the model learns."""
    return tuple(name for name in CLASSES if name != held_out)


def base_config(held_out: str, seed: int) -> Config:
    """The small model, trained without a class."""
    config = Config.fromfile('configs/eomt_tiny_cityscapes.py')
    known = known_classes(held_out)
    config.model.type = 'EoMTAnomalySegmentor'
    config.model.decode_head.update(type='EoMTAnomalyHead', num_classes=len(known), anomaly_scores=['eam', 'void'])
    for loader in (config.train_dataloader, config.test_dataloader):
        loader.dataset.metainfo = dict(classes=known)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=BASE_ITERS)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.default_hooks.checkpoint.update(interval=BASE_ITERS, save_best=None)
    config.custom_hooks[0].update(start_iters=[120, 270], end_iters=[270, 420])
    config.param_scheduler[0].end = config.param_scheduler[1].begin = 50
    config.param_scheduler[1].end = BASE_ITERS
    config.randomness = dict(seed=seed)
    return config


def variant_config(name: str, held_out: str, seed: int, base: str) -> Config:
    """The base model, going on in one of the ways of ``VARIANTS``."""
    hook, head = VARIANTS[name]
    config = base_config(held_out, seed)
    config.load_from = base
    config.model.decode_head.update(head)
    config.custom_hooks = [hook]  # no MaskAnnealingHook: the base model's masks are annealed, and stay off
    if 'cosine_head' in head:
        config.custom_hooks.append(dict(type='MarginWarmupHook'))
    if 'loss_outlier' in head:
        paste = dict(
            type='PasteOutliers', source=dict(type='TrainingPatches'), prob=PROB, known_classes=known_classes(held_out)
        )
        config.train_dataloader.dataset.pipeline.insert(2, paste)
    config.train_cfg.max_iters = ITERS
    config.default_hooks.checkpoint.interval = ITERS
    config.optim_wrapper.optimizer.lr = LR
    config.param_scheduler[0].end = config.param_scheduler[1].begin = WARM_UP
    config.param_scheduler[1].end = ITERS
    return config


def evaluate(folder: Path, config: Config, checkpoint: Path) -> dict:
    """What ``tools/test.py`` measures with a config."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config.dump(folder / 'config.py')
    run(folder / 'test.log', 'tools/test.py', folder / 'config.py', checkpoint, '--work-dir', folder)
    (metrics,) = folder.glob('*/*.json')
    return json.loads(metrics.read_text())


def find_held_out(config: Config, held_out: str) -> Config:
    """A config that measures how well the held-out class is found, in place of the mIoU."""
    config = copy.deepcopy(config)
    dataset = config.test_dataloader.dataset
    pipeline = dataset.pop('pipeline')
    dataset.metainfo = dict(classes=CLASSES)
    config.test_dataloader.dataset = dict(
        type='HeldOutClassesDataset', dataset=dataset, anomaly_classes=[held_out], pipeline=pipeline
    )
    config.test_evaluator = dict(type='AnomalyMetric', scores=SCORES)
    return config


def measure(name: str, held_out: str, seed: int) -> dict:
    """Metrics of a variant, trained if that is still to be done."""
    folder = WORK_DIR / f'{held_out}_{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    title, base = f'{held_out} {seed} ', base_config(held_out, seed)
    trained = folder / 'base' / stage(f'{title}base', folder / 'base.json', train, folder / 'base', base)['checkpoint']
    config = base
    if name != 'base':
        config = variant_config(name, held_out, seed, str(trained))
        done = stage(f'{title}{name}', folder / f'{name}.json', train, folder / name, config)
        trained = folder / name / done['checkpoint']
    figures = {}
    for what, settings in (('anomalies', find_held_out(config, held_out)), ('mIoU', config)):
        place = folder / f'{name}_{what}'
        figures |= stage(f'  {what}', place.with_suffix('.json'), evaluate, place, settings, trained)
    return {key: value for key, value in figures.items() if '/' in key or key == 'mIoU'}


def spread(rows: list[dict], key: str) -> str:
    """Mean over the seeds, with the lowest and highest."""
    values = [row[key] for row in rows]
    return f'{statistics.mean(values):.1f} ({min(values):.1f}–{max(values):.1f})'


def table(variants: dict[str, dict[str, dict]]) -> str:
    """Metrics of a held-out class in Markdown: a row for each score, a column for each variant."""
    rows = {name: list(by_seed.values()) for name, by_seed in variants.items()}
    lines = [['score', *rows], ['---'] * (1 + len(rows)), ['mIoU', *(spread(some, 'mIoU') for some in rows.values())]]
    for score in SCORES:
        cells = [f'{spread(some, f"AP/{score}")} / {spread(some, f"FPR95/{score}")}' for some in rows.values()]
        lines.append([f'`{score}`', *cells])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--classes', nargs='+', default=list(HELD_OUT), choices=CLASSES, help='to hold out, one at a time')
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS, help='only these (all)')
    parser.add_argument('--fresh', action='store_true', help=f'delete {WORK_DIR} and start over')
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.fresh:
        shutil.rmtree(WORK_DIR, ignore_errors=True)
    figures: dict[str, dict[str, dict[str, dict]]] = {}
    for seed in args.seeds:
        for held_out in args.classes:
            for name in args.variants:
                by_seed = figures.setdefault(held_out, {}).setdefault(name, {})
                by_seed[str(seed)] = measure(name, held_out, seed)
    whole = [args.classes, args.seeds, args.variants] == [list(HELD_OUT), list(SEEDS), list(VARIANTS)]
    out = RESULTS if whole else WORK_DIR / RESULTS.name
    settings = dict(base_iters=BASE_ITERS, iters=ITERS, lr=LR, prob=PROB)
    versions = dict(torch=torch.__version__, peft=metadata.version('peft'))
    out.write_text(json.dumps(dict(settings=settings, versions=versions, figures=figures), indent=2) + '\n')
    for held_out, variants in figures.items():
        print(f'\n{held_out} held out: AP / FPR95 in %, mean over the seeds (lowest–highest)\n\n{table(variants)}')
    print(f'\nAll figures: {out}')


if __name__ == '__main__':
    main()
