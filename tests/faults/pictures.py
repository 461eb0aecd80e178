"""Damaged images and masks, handed over at every door that takes pictures."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.datasets import CityscapesDataset
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from faults import damage_bytes, damage_pictures, forks
from faults.artefacts import Store, tool
from faults.doors import Outputs, digest
from faults.outcomes import OTHER, RIGHT, Outcome, judge

TIMEOUT = 60
NAMES = ('one', 'two', 'three', 'four')
DAMAGED = 'two'
NOT_THERE = (damage_bytes.missing, damage_bytes.unreadable_link, damage_bytes.folder)  # a scan of a folder finds no file
EXPECTED: dict[str, Outputs] = {}  # outputs of whole pictures, by door
Door = Callable[[Store, Path, Path], Outputs]  # whole files, the folder of pictures, a folder to work in


def place_pictures(store: Store, folder: Path) -> None:
    """Images and masks of ids in two folders."""
    images = sorted((store.scenes / 'leftImg8bit' / 'train').glob('**/*.png'))
    for part in ('images', 'masks'):
        (folder / part).mkdir(parents=True)
    for name, image in zip(NAMES, images):
        mask = str(image).replace('/leftImg8bit/', '/gtFine/').replace('_leftImg8bit', '_gtFine_labelTrainIds')
        shutil.copy(image, folder / 'images' / f'{name}.png')
        shutil.copy(mask, folder / 'masks' / f'{name}.png')
    (folder / 'names.txt').write_text('\n'.join(NAMES) + '\n')


def _dataset(folder: Path, pipeline: list[dict]) -> dict:
    return dict(
        _delete_=True,
        type='BaseSegDataset',
        metainfo=dict(CityscapesDataset.METAINFO),
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        ann_file='names.txt',
        img_suffix='.png',
        seg_map_suffix='.png',
        pipeline=pipeline,
    )


READ = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


def _config(store: Store, folder: Path, work: Path) -> Config:
    splits = ('train', 'val', 'test')
    return store.config(work / 'run', **{f'{split}_dataloader.dataset': _dataset(folder, READ) for split in splits})


class _Stop(Exception):
    pass


class _BeforeTheFirstStep(Hook):
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        raise _Stop


def _read(dataset: Any) -> str:
    samples = [dataset[i] for i in range(len(dataset))]
    return digest([(sample['inputs'], sample['data_samples'].gt_sem_seg.data) for sample in samples])


def with_training(store: Store, folder: Path, work: Path) -> Outputs:
    """A run with its data check: what it would train on."""
    runner = Runner.from_cfg(_config(store, folder, work))
    runner.register_hook(_BeforeTheFirstStep(), priority='LOWEST')
    try:
        runner.train()
    except _Stop:
        return dict(data=_read(runner.train_dataloader.dataset))
    return {}


def with_test(store: Store, folder: Path, work: Path) -> Outputs:
    """``Runner.test``, with its data check."""
    config = _config(store, folder, work)
    config.load_from = str(store.place / 'plain.pth')
    return {name: float(value) for name, value in Runner.from_cfg(config).test().items()}


def with_init_dataset(store: Store, folder: Path, work: Path) -> Outputs:
    """``tools/init_dataset.py``, and what its config reads."""
    file = work / 'own.py'
    names = work / 'classes.txt'
    names.write_text('\n'.join(CityscapesDataset.METAINFO['classes']) + '\n')
    options = ['--classes', names, '--ignore', 255, '--out', file, '--base', 'eomt_tiny_cityscapes.py']
    tool('init_dataset.py', folder / 'images', folder / 'masks', *options)
    register_all_modules()
    config = Config.fromfile(file)
    found = dict(classes=list(config.classes))
    for split in ('train', 'val'):
        dataset = DATASETS.build({**config[f'{split}_dataloader'].dataset, 'pipeline': READ})
        found[split] = _read(dataset)
    return found


def with_predict(store: Store, folder: Path, work: Path) -> Outputs:
    """``tools/predict.py``; the other images' labels are written whatever becomes of one."""
    file, out = work / 'config.py', work / 'out'
    store.config(work / 'run').dump(file)
    trouble = None
    try:
        tool('predict.py', file, store.place / 'plain.pth', folder / 'images', '--out', out)
    except SystemExit as error:
        trouble = error
    labels = {name: cv2.imread(str(out / 'labels' / f'{name}.png'), cv2.IMREAD_UNCHANGED) for name in NAMES}
    if any(labels[name] is None for name in NAMES if name != DAMAGED):
        raise AssertionError(f'Not all of the other images were predicted: {trouble}')
    if trouble is not None:
        raise trouble
    return {name: torch.from_numpy(label) for name, label in labels.items()}


DOORS: dict[str, Door] = dict(train=with_training, test=with_test, init_dataset=with_init_dataset, predict=with_predict)


def expect(door: str, store: Store) -> tuple[str, Outputs]:
    """Outputs of whole pictures at a door."""
    work = store.place / 'expected' / f'pictures-{door}'
    place_pictures(store, work / 'data')
    end = forks.run(lambda: _in_folder(DOORS[door], store, work), work / 'log.txt', TIMEOUT)
    return door, dict(fails=forks.trouble_of(end)) if end.error or end.signal else end.value


def _in_folder(door: Door, store: Store, work: Path) -> Outputs:
    os.chdir(work)  # init_dataset writes to data/ there
    return door(store, work / 'data', work)


def draw_case(draw: random.Random) -> tuple[str, str, Any, bool]:
    """Door, part, damage, and whether that is harmless."""
    door = draw.choice(list(DOORS))
    part = 'images' if door == 'predict' else draw.choice(['images', 'masks', 'masks'])
    harmless = draw.random() < 0.1
    if harmless:
        kinds = damage_pictures.HARMLESS_IMAGES if part == 'images' else damage_pictures.HARMLESS_MASKS
    else:
        kinds = damage_pictures.IMAGES if part == 'images' else damage_pictures.MASKS
        if door in ('init_dataset', 'predict'):
            kinds = tuple(kind for kind in kinds if kind not in NOT_THERE)
    return door, part, draw.choice(kinds), harmless


def run_case(number: int, seed: int, store: Store, place: Path, keep: bool = False) -> Outcome:
    """Draw, damage, hand over, judge."""
    draw = random.Random(f'pictures-{seed}-{number}')
    door, part, kind, harmless = draw_case(draw)
    work = place / f'case_{number}'
    place_pictures(store, work / 'data')
    path = work / 'data' / part / f'{DAMAGED}.png'
    kind(path, draw)
    end = forks.run(lambda: _in_folder(DOORS[door], store, work), work / 'log.txt', TIMEOUT)
    verdict, detail = judge(end, path.name, work / 'canary', [EXPECTED[door]], harmless, rounded=False)
    if verdict == OTHER and _is_another_picture(kind, door, end.value):
        verdict = RIGHT
    if not keep:
        shutil.rmtree(work, ignore_errors=True)
    return Outcome(number, f'{part} at {door}: {kind.__name__} ({kind.__doc__})', verdict, detail)


def _is_another_picture(kind: Any, door: str, value: Outputs) -> bool:
    """Whether ``predict`` was handed an image that is whole, and others' labels are as they were."""
    whole = (damage_pictures.resized, damage_pictures.lying, damage_pictures.fractions)
    others = [name for name in NAMES if name != DAMAGED]
    return door == 'predict' and kind in whole and all(torch.equal(value[n], EXPECTED[door][n]) for n in others)
