#!/usr/bin/env python
"""What adapting costs and brings on real images: CamVid, from day to dusk.

    python benchmarks/lora_camvid.py [--iters 300] [--variants head lora_r16 full …] [--fresh]

Trains the small model of configs/eomt_tiny_cityscapes.py on the daytime sequences, adapts it to the sequence at dusk in
several ways with the same images, length and seed, and evaluates each on later frames of that sequence and, for what is
forgotten, on the daytime validation split. Then it measures peak memory, the time of a training step and the size of the
weights. It prints a table and writes benchmarks/results/lora_camvid.json; a trial with other iterations or only some
variants writes it into work_dirs/lora_camvid/<iters>_iters instead. What is finished is kept: a run that was stopped goes
on, and --fresh starts over. To repeat the adaptations alone, delete that folder.

The learning rates were set beforehand, not by results. Head and adapters train with 1e-3, all parameters with 1e-4: LoRA is
known to need about ten times the rate of full training, and a fifth of the base model's 5e-4 is gentle on weights that are
trained already. All runs on the CPU, so that the memory of a process is all that it takes.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path

os.environ['CUDA_VISIBLE_DEVICES'] = ''  # mmengine picks its device when it is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import torch
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner

import mmseg_eomt  # noqa: F401  registers models and hooks, and lets torch.load read mmengine's checkpoints

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/cityscapes')
WORK_DIR = Path('work_dirs/lora_camvid')
RESULTS = Path('benchmarks/results/lora_camvid.json')
DAY, DUSK, DAY_VAL = ('train/0006R0', 'train/0016E5'), 'train/0001TP', 'val/0016E5'
BASE_ITERS, ITERS, WARM_UP = 1200, 300, 20
SEED = 0
LIGHTS = ('dusk', 'day')
LR_ADAPTED, LR_FULL = 1e-3, 1e-4
# what LoRAHook is given; None: no hook, all parameters train
VARIANTS = {
    'head': dict(target_modules=[]),
    **{f'lora_r{r}': dict(r=r, lora_alpha=2 * r) for r in (4, 8, 16, 32)},
    'dora_r16': dict(r=16, lora_alpha=32, peft=dict(use_dora=True)),
    'full': None,
}
CLASS_ROW = re.compile(r'^\|\s+(\w[\w ]*?)\s+\|\s+([\d.]+|nan)\s+\|\s+([\d.]+|nan)\s+\|$', re.MULTILINE)
MEMORY_ITERS, MEMORY_RUNS, WARM_UP_ROUNDS, ROUNDS = 6, 3, 2, 8


def frames(sequence: str) -> list[str]:
    """Names of a sequence's frames in time order, as ``ann_file`` lists them; ends the run if some are missing."""
    image, label = '_leftImg8bit.png', '_gtFine_labelTrainIds.png'
    folder = DATA / 'leftImg8bit' / sequence
    names = sorted(f'{sequence}/{path.name.removesuffix(image)}' for path in folder.glob(f'*{image}'))
    unlabelled = [name for name in names if not (DATA / 'gtFine' / f'{name}{label}').is_file()]
    if not names or unlabelled:
        sys.exit(
            f'{folder} has {len(names)} images, {len(unlabelled)} of them without labels. Put the sequences '
            f'{", ".join((*DAY, DUSK, DAY_VAL))} of CamVid at {DATA} as Cityscapes has them: leftImg8bit/{sequence}/'
            f'*{image} and gtFine/{sequence}/*{label}, with Cityscapes train ids.'
        )
    return names


def write_lists() -> dict[str, int]:
    """Write the ``ann_file`` of each set of images; return the sets' sizes."""
    dusk = frames(DUSK)
    cut = 2 * len(dusk) // 3
    lists = dict(
        day_train=[name for sequence in DAY for name in frames(sequence)],
        dusk_train=dusk[:cut],
        dusk_test=dusk[cut:],
        day_test=frames(DAY_VAL),
    )
    for name, lines in lists.items():
        ann_file(name).write_text('\n'.join(lines) + '\n')
    return {name: len(lines) for name, lines in lists.items()}


def ann_file(name: str) -> Path:
    """Where the list of a set of images lies."""
    return WORK_DIR / f'{name}.txt'


def stage(title: str, file: Path, compute: Callable[..., dict], *args: object) -> dict:
    """What ``compute`` returns, kept in ``file`` and read from there if it is there already."""
    print(f'{title:<20}', end='', flush=True)
    start = time.time()
    kept = file.is_file()
    if not kept:
        file.write_text(json.dumps(compute(*args)))
    print('kept' if kept else f'{time.time() - start:.0f} s', flush=True)
    return json.loads(file.read_text())


def run(log: Path, *args: object) -> float:
    """Run a command of this repository, its output in ``log``; the peak memory of the process in MB.

    If the command fails, the last lines of its output are printed and the run ends with status 1.
    """
    command = [sys.executable, *map(str, args)]
    with log.open('w', encoding='utf-8') as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = ''.join(log.read_text(encoding='utf-8').splitlines(keepends=True)[-25:])
        sys.exit(f'failed\n{last}\n{" ".join(command[1:])} ended with status {process.returncode}; all of its output: {log}')
    return usage.ru_maxrss * 1024 / 1e6  # Linux counts in KiB


def config_of(file: str, train: str, max_iters: int) -> Config:
    """A config of configs/ with data, seed and length set; one checkpoint at the end and no validation on the way."""
    config = Config.fromfile(f'configs/{file}')
    for loader in (config.train_dataloader, config.test_dataloader):
        prefix = dict(img_path=str(DATA / 'leftImg8bit'), seg_map_path=str(DATA / 'gtFine'))
        loader.dataset.update(data_root=None, data_prefix=prefix)
    config.train_dataloader.dataset.ann_file = str(ann_file(train))
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.default_hooks.checkpoint.update(interval=max_iters, save_best=None)
    config.randomness = dict(seed=SEED)
    return config


def variant_config(name: str, iters: int, base: Path) -> Config:
    """The base model at dusk, adapted in one of the ways of ``VARIANTS``."""
    hook = VARIANTS[name]
    file = 'eomt_tiny_cityscapes.py' if hook is None else 'eomt_lora_tiny_cityscapes.py'
    config = config_of(file, 'dusk_train', iters)
    config.load_from = str(base)
    if hook is None:
        config.custom_hooks = []  # no MaskAnnealingHook: the base model's masks are annealed, and stay off
    else:
        config.custom_hooks[0].update(hook)
    config.optim_wrapper.optimizer.lr = LR_FULL if hook is None else LR_ADAPTED
    warm_up = min(WARM_UP, iters // 2)
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, begin=0, end=warm_up, by_epoch=False),
        dict(type='PolyLR', power=0.9, eta_min=0.0, begin=warm_up, end=iters, by_epoch=False),
    ]
    return config


def train(folder: Path, config: Config) -> dict:
    """Train a config in a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config.dump(folder / 'config.py')
    run(folder / 'train.log', 'tools/train.py', folder / 'config.py', '--work-dir', folder)
    return dict(checkpoint=f'iter_{config.train_cfg.max_iters}.pth')


def evaluate(folder: Path, checkpoint: Path, images: str) -> dict:
    """mIoU in per cent over the classes that occur in the labels, and as the toolbox counts it.

    The toolbox also counts a class that does not occur, with an IoU of 0, if a single pixel is taken for it.
    """
    work_dir, log = folder / images, folder / f'{images}.log'
    shutil.rmtree(work_dir, ignore_errors=True)
    data = f'test_dataloader.dataset.ann_file={ann_file(images)}'
    run(log, 'tools/test.py', folder / 'config.py', checkpoint, '--work-dir', work_dir, '--cfg-options', data)
    (metrics,) = work_dir.glob('*/*.json')
    classes = {name: float(iou) for name, iou, accuracy in CLASS_ROW.findall(log.read_text()) if accuracy != 'nan'}
    toolbox = json.loads(metrics.read_text())['mIoU']
    return dict(mIoU=statistics.mean(classes.values()), mIoU_toolbox=toolbox, IoU_of_classes=classes)


def peak_memory(folder: Path) -> dict:
    """Peak resident memory in MB of a whole process that trains for a few iterations, nothing subtracted; median of runs."""
    command = ('tools/train.py', folder / 'config.py', '--work-dir', folder / 'memory', '--cfg-options')
    one_process = ('train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False')
    unsaved = ('default_hooks.checkpoint.interval=-1', 'default_hooks.checkpoint.save_last=False')
    length = f'train_cfg.max_iters={MEMORY_ITERS}'
    peaks = [run(folder / 'memory.log', *command, *one_process, *unsaved, length) for _ in range(MEMORY_RUNS)]
    return dict(peak_memory_mb=statistics.median(peaks), peaks_mb=peaks)


@LOOPS.register_module()
class PrepareOnly(IterBasedTrainLoop):
    """Lets ``Runner.train`` build, adapt and load everything, and trains nothing."""

    def run(self) -> None:
        """Do nothing."""


def prepared_runner(folder: Path) -> Runner:
    """A Runner of a variant as it is ahead of its first iteration."""
    config = Config.fromfile(folder / 'config.py')
    config.train_cfg.type = 'PrepareOnly'
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    config.update(work_dir=str(folder / 'steps'), experiment_name=f'steps_{folder.name}')
    runner = Runner.from_cfg(config)
    runner.train()
    runner.model.train()
    return runner


def weight_sizes(checkpoint: Path, model: torch.nn.Module) -> dict:
    """Number of trained parameters; bytes of their tensors in the checkpoint, of all its tensors, and of its file."""
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
    missing = sorted(trained.keys() - weights.keys())
    if missing:
        sys.exit(f'failed\n{checkpoint} lacks {len(missing)} of the trained weights, such as {missing[0]}.')
    sizes = {name: value.numel() * value.element_size() for name, value in weights.items()}
    return dict(
        trained_parameters=sum(trained.values()),
        adapter_bytes=sum(sizes[name] for name in trained if '.lora_' in name),
        other_trained_bytes=sum(sizes[name] for name in trained if '.lora_' not in name),
        state_dict_bytes=sum(sizes.values()),
        checkpoint_bytes=checkpoint.stat().st_size,
    )


def steps_and_sizes(checkpoints: dict[str, Path]) -> dict:
    """Median seconds of a training step of each variant, all in turns on one batch in one process; sizes of the weights."""
    seconds = {name: [] for name in checkpoints}
    with (WORK_DIR / 'steps.log').open('w', encoding='utf-8') as log, redirect_stdout(log), redirect_stderr(log):
        runners = {name: prepared_runner(checkpoint.parent) for name, checkpoint in checkpoints.items()}
        batch = next(iter(runners[next(iter(runners))].train_dataloader))
        for _ in range(WARM_UP_ROUNDS + ROUNDS):
            for name, runner in runners.items():
                start = time.perf_counter()
                runner.model.train_step(batch, runner.optim_wrapper)
                seconds[name].append(time.perf_counter() - start)
    return {
        name: dict(
            seconds_per_step=statistics.median(seconds[name][WARM_UP_ROUNDS:]),
            **weight_sizes(checkpoints[name], runner.model),
        )
        for name, runner in runners.items()
    }


def table(base: dict, variants: dict[str, dict]) -> str:
    """The figures in Markdown."""
    heads = ['variant', 'trained parameters', 'adapters, kB', 'other trained weights, kB', 'checkpoint file, kB']
    heads += ['mIoU dusk, %', 'mIoU day, %', 's/step', 'of full', 'peak memory, MB']
    rows = [heads, ['---', *['---:'] * (len(heads) - 1)]]
    rows.append(['base, not adapted', *['-'] * 4, *(f'{base[light]["mIoU"]:.1f}' for light in LIGHTS), *['-'] * 3])
    for name, row in variants.items():
        kilobytes = (f'{row[key] / 1000:,.0f}' for key in ('adapter_bytes', 'other_trained_bytes', 'checkpoint_bytes'))
        quality = (f'{row[light]["mIoU"]:.1f}' for light in LIGHTS)
        step = row['seconds_per_step']
        ratio = f'{step / variants["full"]["seconds_per_step"]:.2f}' if 'full' in variants else '-'
        cost = (f'{step:.3f}', ratio, f'{row["peak_memory_mb"]:,.0f}')
        rows.append([name, f'{row["trained_parameters"]:,}', *kilobytes, *quality, *cost])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def train_and_evaluate(name: str, folder: Path, config: Config) -> tuple[Path, dict]:
    """The checkpoint of a config trained in a folder, and its figures in each light."""
    checkpoint = folder / stage(f'train {name}', folder / 'train.json', train, folder, config)['checkpoint']
    figures = {}
    for light in LIGHTS:
        figures[light] = stage(f'  at {light}', folder / f'{light}.json', evaluate, folder, checkpoint, f'{light}_test')
    return checkpoint, figures


def measure(names: list[str], iters: int, folder: Path) -> dict:
    """All figures of the base model and of the variants with these names."""
    num_images = write_lists()
    config = config_of('eomt_tiny_cityscapes.py', 'day_train', BASE_ITERS)
    start, base = train_and_evaluate('base', WORK_DIR / 'base', config)
    checkpoints, variants = {}, {}
    for name in names:
        config = variant_config(name, iters, start)
        checkpoints[name], variants[name] = train_and_evaluate(name, folder / name, config)
    # ahead of the steps, which fill this process with models: Linux counts its peak as a child's too
    for name in names:
        variants[name] |= stage(f'memory {name}', folder / name / 'memory.json', peak_memory, folder / name)
    costs = stage('steps and sizes', folder / f'steps_{"_".join(names)}.json', steps_and_sizes, checkpoints)
    return dict(
        settings=dict(base_iters=BASE_ITERS, iters=iters, seed=SEED, lr_adapted=LR_ADAPTED, lr_full=LR_FULL),
        versions=dict(torch=torch.__version__, peft=metadata.version('peft'), threads=torch.get_num_threads()),
        num_images=num_images,
        base=base,
        variants={name: variants[name] | costs[name] for name in names},
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--iters', type=int, default=ITERS, help=f'iterations of each adaptation ({ITERS})')
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS, help='only these (all)')
    parser.add_argument('--fresh', action='store_true', help=f'delete {WORK_DIR} and start over')
    args = parser.parse_args()
    if args.iters < 2:
        parser.error('--iters must be at least 2')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is stopped stops its command too
    os.chdir(ROOT)
    if args.fresh:
        shutil.rmtree(WORK_DIR, ignore_errors=True)
    folder = WORK_DIR / f'{args.iters}_iters'
    folder.mkdir(parents=True, exist_ok=True)
    figures = measure(args.variants, args.iters, folder)
    out = RESULTS if args.iters == ITERS and args.variants == list(VARIANTS) else folder / RESULTS.name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + '\n')
    print(f'\n{table(figures["base"], figures["variants"])}')
    print('\nmIoU counts the classes that occur in the labels; peak memory is that of the whole process, on the CPU.')
    print(f'All figures: {out}')


if __name__ == '__main__':
    main()
