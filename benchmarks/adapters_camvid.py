#!/usr/bin/env python
"""Which way of adapting with how many images: CamVid, from day to dusk.

    python benchmarks/adapters_camvid.py [--workers 2] [--variants head lora …] [--fresh]

A small ViT (192×6×3) is pretrained on the frames without labels (masked patches), then trained as an EoMT on all
daytime frames. The same model is adapted to dusk with 5, 10, 20 and 41 frames in each of the ways of ``VARIANTS``, three
seeds each, and evaluated on the last 21 frames at dusk and, for what is forgotten, on daytime frames. Before that each way
gets the same search over three learning rates, on frames that are neither trained on there nor tested on. The seed chooses
the frames, their order and the adapters' start, the same for all ways, so that differences are paired. Some ways also train
four times as long.

It prints the tables, and writes benchmarks/results/adapters_camvid.json and .png. Every finished run is kept in
work_dirs/adapters_camvid: a benchmark that was stopped goes on, --fresh starts over. A trial with some variants writes its
figures there. One thread per worker.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ['CUDA_VISIBLE_DEVICES'] = ''  # mmengine picks its device when it is imported
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from mmseg.registry import METRICS
from torch import Tensor, nn
from tqdm import tqdm

import mmseg_eomt  # noqa: F401  registers models and hooks
from mmseg_eomt.models.arch import get_arch
from mmseg_eomt.models.eomt_vit import EoMTViT
from mmseg_eomt.whole import whole_file

ROOT = Path(__file__).resolve().parents[1]
DATA = Path('data/cityscapes')
WORK_DIR = Path('work_dirs/adapters_camvid')
RESULTS = Path('benchmarks/results/adapters_camvid.json')
DAY, DUSK, DAY_VAL = ('train/0006R0', 'train/0016E5'), 'train/0001TP', 'val/0016E5'
ARCH = dict(embed_dims=192, num_layers=6, num_heads=3, layer_scale_init=1.0)
SIZE, CROP, PATCH = (180, 240), (128, 160), 8  # half of CamVid's: the small model is as good there, and twice as fast
MASKED_STEPS, MASKED_BATCH = 1500, 8
BASE_ITERS, BASE_BATCH, ITERS, BATCH = 2000, 4, 100, 2
NUM_FRAMES, SEEDS = (5, 10, 20, 41), (0, 1, 2)
FACTORS = (0.3, 1.0, 3.0)  # of a variant's own learning rate, in the search
SEARCH_FRAMES = 20
LONGER_ITERS, LONGER = 400, ('head', 'lora', 'lora_mlp', 'full')
LIGHTS = ('dusk', 'day')
BASES = ('base_masked', 'base_random')

NEW_PARTS = [f'decode_head.{part}' for part in ('query_embed', 'class_head', 'mask_head', 'upscale')]
DECODER_ALONE = dict(target_modules=[], trainable_modules=['decode_head'])
WITH_MLP = dict(target_modules=['qkv', 'proj', 'fc1', 'fc2'])
# LoRAHook's arguments, the learning rate that the search starts from, and what else is set; no hook: all parameters train
VARIANTS: dict[str, dict[str, Any]] = {
    'head': dict(hook=dict(target_modules=[]), lr=1e-3),
    'frozen': dict(hook=DECODER_ALONE, lr=3e-4),
    'lora': dict(hook=dict(r=16), lr=1e-3),
    'lora_upper': dict(hook=dict(r=16, blocks=(2, 5)), lr=1e-3),
    'lora_mlp': dict(hook=dict(r=16, **WITH_MLP), lr=1e-3),
    'lora_split': dict(hook=dict(r=16, split_qkv=True), lr=1e-3),
    'lora_minor': dict(hook=dict(r=16, lora_alpha=16, peft=dict(init_lora_weights='minor')), lr=1e-3),
    'lora_ema': dict(hook=dict(r=16), lr=1e-3, ema=True),
    'soma': dict(
        hook=dict(
            r=16,
            lora_alpha=16,
            lora_dropout=0.0,
            blocks=(2, 5),
            split_qkv=True,
            peft=dict(init_lora_weights='minor', bias='lora_only'),
            **WITH_MLP,
        ),
        lr=1e-3,
        ema=True,
    ),
    'dora': dict(hook=dict(r=16, peft=dict(use_dora=True)), lr=1e-3),
    'rein': dict(
        hook=dict(target_modules=[], trainable_modules=['backbone.rein', 'decode_head.joint_rein', *NEW_PARTS]),
        lr=1e-3,
        rein=True,
    ),
    'pmt': dict(hook=DECODER_ALONE, lr=3e-4, pmt=True),
    'full': dict(hook=None, lr=1e-4),
}


# frames


def frames(sequence: str) -> list[str]:
    """Names of a sequence's frames in time order, as ``ann_file`` lists them; ends the run if some are missing."""
    image, label = '_leftImg8bit.png', '_gtFine_labelTrainIds.png'
    folder = DATA / 'leftImg8bit' / sequence
    names = sorted(f'{sequence}/{path.name.removesuffix(image)}' for path in folder.glob(f'*{image}'))
    if not names or not all((DATA / 'gtFine' / f'{name}{label}').is_file() for name in names):
        sys.exit(
            f'{folder} lacks images or their labels. Put the sequences {", ".join((*DAY, DUSK, DAY_VAL))} of CamVid at '
            f'{DATA} as Cityscapes has them: leftImg8bit/{sequence}/*{image} and gtFine/{sequence}/*{label}, with '
            f'Cityscapes train ids.'
        )
    return names


def spread(names: list[str], number: int) -> list[str]:
    """As many of them, evenly spread."""
    return [names[int(i * len(names) / number)] for i in range(number)]


def frame_sets() -> dict[str, list[str]]:
    """The frames of every set; those at dusk for testing are the last third, apart from all others."""
    dusk, day_val = frames(DUSK), frames(DAY_VAL)
    cut = 2 * len(dusk) // 3
    pool, test = dusk[:cut], dusk[cut:]
    sets = dict(
        day=[name for sequence in DAY for name in frames(sequence)],
        unlabelled=[name for sequence in (*DAY, DAY_VAL) for name in frames(sequence)] + pool,
        search_train=spread(pool[: 3 * len(pool) // 4], SEARCH_FRAMES),
        search_val=pool[3 * len(pool) // 4 :],
        test=test + spread(day_val, 13),
    )
    for number, seed in itertools.product(NUM_FRAMES, SEEDS):
        chosen = random.Random(f'{number} {seed}').sample(pool, min(number, len(pool)))
        sets[f'dusk_{number}_{seed}'] = sorted(chosen)
    return sets


def ann_file(name: str) -> Path:
    """Where the list of a set lies."""
    return WORK_DIR / 'sets' / f'{name}.txt'


def write_lists() -> dict[str, int]:
    """Write the ``ann_file`` of each set; return the sets' sizes."""
    sets = frame_sets()
    ann_file('x').parent.mkdir(parents=True, exist_ok=True)
    for name, lines in sets.items():
        ann_file(name).write_text('\n'.join(lines) + '\n')
    return {name: len(lines) for name, lines in sets.items()}


@METRICS.register_module()
class IoUByLight(BaseMetric):
    """mIoU in per cent at dusk and by day, over the classes that occur in the labels of each."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a class that are taken for another, per image."""
        for sample in data_samples:
            predicted, label = (sample[field]['data'].flatten() for field in ('pred_sem_seg', 'gt_sem_seg'))
            seen = label < 19
            counts = torch.bincount(19 * label[seen].long() + predicted[seen].long(), minlength=19 * 19)
            light = 'dusk' if '0001TP' in sample['img_path'] else 'day'
            self.results.append((light, counts.view(19, 19)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mIoU of each light, and the IoU of each class."""
        figures = {}
        for light in dict.fromkeys(light for light, _ in results):
            counts = sum(counts for of, counts in results if of == light).double()
            hits = counts.diagonal()
            iou = 100 * hits / (counts.sum(0) + counts.sum(1) - hits)
            occurs = counts.sum(1) > 0
            figures[light] = float(iou[occurs].mean())
            figures.update({f'{light}/{i}': float(iou[i]) for i in range(19) if occurs[i]})
        return figures


# pretraining on masked patches


class MaskedPatches(nn.Module):
    """A masked autoencoder (He et al., CVPR 2022) around the small ViT: a quarter of the patches is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = EoMTViT(arch=ARCH, img_size=CROP, patch_size=PATCH, num_joint_blocks=0)
        self.vit.init_weights()
        decoder = dict(embed_dims=96, num_layers=2, num_heads=3, layer_scale_init=1.0)
        self.to_decoder = nn.Linear(192, 96)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 96))
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.vit.pos_embed.shape[1], 96))
        self.decoder = nn.ModuleList(get_arch(decoder).build_block() for _ in range(2))
        self.pixels = nn.Linear(96, PATCH * PATCH * 3)

    def forward(self, image: Tensor) -> Tensor:
        """Mean squared error of the hidden patches, each normalised; image (B, 3, H, W)."""
        x, grid, _ = self.vit.embed(image)
        prefix = x.shape[1] - grid[0] * grid[1]
        order = torch.rand(x.shape[0], x.shape[1] - prefix).argsort(1)
        kept = order[:, : order.shape[1] // 4]
        visible = x[:, prefix:].gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat((x[:, :prefix], visible), dim=1)
        for block in self.vit.blocks:
            x = block(x)
        x = self.to_decoder(self.vit.norm(x)[:, prefix:])
        tokens = self.mask_token.expand(x.shape[0], order.shape[1], -1)
        x = tokens.scatter(1, kept[..., None].expand(-1, -1, 96), x) + self.positions
        for block in self.decoder:
            x = block(x)
        wanted = F.unfold(image, PATCH, stride=PATCH).transpose(1, 2)
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
        error = (self.pixels(x) - wanted).square().mean(-1)
        hidden = torch.ones_like(error).scatter(1, kept, 0.0)
        return (error * hidden).sum() / hidden.sum()


def pretrain(out: Path) -> dict:
    """Train the ViT on masked patches, and write its weights."""
    import cv2

    torch.manual_seed(0)
    names = ann_file('unlabelled').read_text().split()
    images = np.stack([cv2.imread(f'{DATA}/leftImg8bit/{name}_leftImg8bit.png')[..., ::-1] for name in names])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    model, rng, losses = MaskedPatches(), np.random.default_rng(0), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    factor = lambda step: min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / MASKED_STEPS))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in tqdm(range(MASKED_STEPS), desc='masked patches', mininterval=10):
        batch = torch.stack([_random_crop(images[i], rng) for i in rng.integers(len(images), size=MASKED_BATCH)])
        loss = model((batch - mean) / std)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with whole_file(out) as new:
        torch.save({name: value for name, value in model.vit.state_dict().items() if name != 'pos_grid'}, new)
    return dict(first_loss=statistics.mean(losses[:50]), last_loss=statistics.mean(losses[-50:]))


def _random_crop(image: np.ndarray, rng: np.random.Generator) -> Tensor:
    """(3, 128, 160) of an image: a random part of random size, maybe mirrored."""
    import cv2

    scale = rng.uniform(0.5, 1.0)
    height, width = int(360 * scale), int(450 * scale)
    top, left = rng.integers(360 - height + 1), rng.integers(480 - width + 1)
    part = cv2.resize(image[top : top + height, left : left + width], CROP[::-1], interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).float()


# runs


def make_config(train: str, test: str, iters: int, lr: float, seed: int, folder: Path) -> Config:
    """The small model on sets of frames: data, length and schedule; no checkpoint on the way, validation at the end."""
    config = Config.fromfile('configs/eomt_tiny_cityscapes.py')
    config.model.vit.update(arch=dict(ARCH), img_size=CROP, patch_size=PATCH, pretrained=None)
    config.model.test_cfg = dict(mode='whole')
    config.model.decode_head.num_points = 2048
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    pipeline = [
        *load,
        dict(type='RandomResize', scale=SIZE[::-1], ratio_range=(0.75, 1.75), keep_ratio=True),
        dict(type='RandomCrop', crop_size=CROP, cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ]
    for loader, steps, names in ((config.train_dataloader, pipeline, train), (config.val_dataloader, None, test)):
        prefix = dict(img_path=str(DATA / 'leftImg8bit'), seg_map_path=str(DATA / 'gtFine'))
        loader.dataset.update(data_root=None, data_prefix=prefix, ann_file=str(ann_file(names)))
        loader.dataset.pipeline = steps or [
            load[0],
            dict(type='Resize', scale=SIZE[::-1]),
            load[1],
            dict(type='PackSegInputs'),
        ]
        loader.update(num_workers=0, persistent_workers=False)
    config.train_dataloader.batch_size = BASE_BATCH if train == 'day' else BATCH
    config.val_evaluator = dict(type='IoUByLight')
    config.test_cfg = config.test_dataloader = config.test_evaluator = None
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=iters)
    config.default_hooks.checkpoint.update(interval=iters, save_best=None, save_optimizer=False)
    for hook in ('visualization', 'data_check'):
        config.default_hooks.pop(hook)
    config.default_hooks.logger.interval = 20
    config.optim_wrapper.optimizer.lr = lr
    warm_up = min(100, iters // 6)
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, begin=0, end=warm_up, by_epoch=False),
        dict(type='PolyLR', power=0.9, eta_min=0.0, begin=warm_up, end=iters, by_epoch=False),
    ]
    config.randomness, config.work_dir, config.log_level = dict(seed=seed), str(folder), 'WARNING'
    return config


def checkpoint_of(base: str) -> str:
    """The checkpoint of a base model."""
    return str(WORK_DIR / base / f'iter_{BASE_ITERS}.pth')


def best_base() -> str:
    """Of the base models with and without pretraining the one that is better by day."""
    return max(BASES, key=lambda name: json.loads((WORK_DIR / f'{name}.json').read_text())['day'])


def base_config(folder: Path, pretrained: Path | None, iters: int) -> Config:
    """The base model: all daytime frames, all parameters."""
    config = make_config('day', 'test', iters, 5e-4, 0, folder)
    config.model.vit.pretrained = str(pretrained) if pretrained else None
    config.custom_hooks = [dict(type='MaskAnnealingHook')]
    return config


def pmt_config(folder: Path, base: str) -> Config:
    """A plain mask decoder on the base model's frozen ViT, trained by day."""
    config = make_config('day', 'test', BASE_ITERS, 5e-4, 0, folder)
    _to_pmt(config, base)
    config.custom_hooks = [dict(type='LoRAHook', **DECODER_ALONE), dict(type='MaskAnnealingHook')]
    return config


def _to_pmt(config: Config, pretrained: str) -> None:
    """The same ViT, whole, under a decoder of two blocks: of as many layers per block of the ViT as the published one."""
    config.model.backbone = dict(type='LateralViT')
    config.model.decode_head.update(type='PMTHead', num_blocks=2)
    config.model.vit.pop('num_joint_blocks')
    config.model.vit.pretrained = pretrained


def run_config(name: str, train: str, test: str, lr: float, seed: int, folder: Path, iters: int = ITERS) -> Config:
    """A variant at dusk, from the base model."""
    variant = VARIANTS[name]
    config = make_config(train, test, iters, lr, seed, folder)
    config.load_from = checkpoint_of('base_pmt' if variant.get('pmt') else best_base())
    # no MaskAnnealingHook: the base model's masks are annealed, and stay off
    config.custom_hooks = [] if variant['hook'] is None else [dict(type='LoRAHook', **variant['hook'])]
    if variant.get('ema'):
        config.custom_hooks.append(dict(type='EMAHook', begin_iter=3 * iters // 10, momentum=0.1))
    if variant.get('rein'):
        config.model.backbone.update(type='ReinViT', num_tokens=config.model.decode_head.num_queries)
        config.model.decode_head.type = 'ReinHead'
    if variant.get('pmt'):
        _to_pmt(config, checkpoint_of(best_base()))
    return config


def train_and_evaluate(config: Config) -> dict:
    """The figures of a run; its last checkpoint is in its folder."""
    folder = Path(config.work_dir)
    shutil.rmtree(folder, ignore_errors=True)
    config.experiment_name = str(folder.relative_to(WORK_DIR)).replace('/', '_')
    start, cpu = time.time(), time.process_time()
    runner = Runner.from_cfg(config)
    runner.train()
    scalars = runner.message_hub.log_scalars
    figures = {key.removeprefix('val/'): buffer.current() for key, buffer in scalars.items() if key.startswith('val/')}
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    loss = scalars['train/loss'].mean(20)
    return dict(
        **{k: v for k, v in figures.items() if k.split('/')[0] in LIGHTS},
        trained_parameters=trained,
        loss=float(loss),
        cpu_seconds=time.process_time() - cpu,
        seconds=time.time() - start,
    )


def kept(file: Path, compute: Callable[[], dict]) -> dict:
    """What ``compute`` returns, kept in a file and read from there where it is already."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        figures = compute()
        with whole_file(file) as new:
            new.write_text(json.dumps(figures))
    return json.loads(file.read_text())


def result_file(kind: str, *parts: object) -> Path:
    """Where the figures of a run are kept."""
    return WORK_DIR / kind / f'{"_".join(map(str, parts))}.json'


def search(name: str, factor: float) -> None:
    """One learning rate of a variant's search."""
    config = run_config(
        name, 'search_train', 'search_val', factor * VARIANTS[name]['lr'], 0, WORK_DIR / 'run' / f'{name}_{factor}'
    )
    kept(result_file('search', name, factor), lambda: _without_folder(config))


def adapt(name: str, number: int, seed: int) -> None:
    """A variant with a number of frames, at the learning rate that its search found."""
    config = run_config(
        name, f'dusk_{number}_{seed}', 'test', best_lr(name), seed, WORK_DIR / 'run' / f'{name}_{number}_{seed}'
    )
    kept(result_file('adapted', name, number, seed), lambda: _without_folder(config))


def adapt_longer(name: str, seed: int) -> None:
    """As :func:`adapt`, with all frames and four times the iterations."""
    number, folder = NUM_FRAMES[-1], WORK_DIR / 'run' / f'{name}_longer_{seed}'
    config = run_config(name, f'dusk_{number}_{seed}', 'test', best_lr(name), seed, folder, LONGER_ITERS)
    kept(result_file('longer', name, seed), lambda: _without_folder(config))


def _without_folder(config: Config) -> dict:
    figures = train_and_evaluate(config)
    shutil.rmtree(config.work_dir)
    return figures


def best_lr(name: str) -> float:
    """The learning rate of a variant's search with the best mIoU; of equal ones the lowest."""
    found = {factor: json.loads(result_file('search', name, factor).read_text())['dusk'] for factor in FACTORS}
    return VARIANTS[name]['lr'] * max(FACTORS, key=lambda factor: found[factor])


def jobs(names: Sequence[str]) -> list[tuple[Path, Callable[..., None], tuple]]:
    """All runs of these variants in order: what keeps it, and the call."""
    searches = [(result_file('search', *args), search, args) for args in itertools.product(names, FACTORS)]
    # the seeds last: what is there of a benchmark that was stopped covers all variants
    adapted = [(name, number, seed) for seed, number, name in itertools.product(SEEDS, NUM_FRAMES, names)]
    longer = list(itertools.product([name for name in LONGER if name in names], SEEDS))
    return (
        searches
        + [(result_file('adapted', *args), adapt, args) for args in adapted]
        + [(result_file('longer', *args), adapt_longer, args) for args in longer]
    )


def work(names: Sequence[str], number: int) -> None:
    """Do what no other worker is at, each run in a process of its own."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context('fork')
    for file, function, args in tqdm(jobs(names), desc=f'worker {number}', position=number, mininterval=5):
        if function is not search:  # needs the whole search of its variant
            while not all(result_file('search', args[0], factor).is_file() for factor in FACTORS):
                time.sleep(2)
        if file.is_file() or not _claim(file):
            continue
        process = context.Process(target=_logged, args=(file, function, args))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f'{file.stem} failed: see {file.with_suffix(".log")}')


def _claim(file: Path) -> bool:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.with_suffix('.claimed').touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _logged(file: Path, function: Callable[..., None], args: tuple) -> None:
    with file.with_suffix('.log').open('w', encoding='utf-8') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        function(*args)
    os._exit(0)  # leaves the warm parent's exit handlers alone


# figures


def bases() -> dict[str, dict]:
    """The figures of the pretraining and of the base models, trained where they are not kept."""
    masked = WORK_DIR / 'masked.pth'
    found = dict(masked=kept(WORK_DIR / 'masked.json', lambda: pretrain(masked)))
    for name, pretrained in zip(BASES, (masked, None)):
        config = base_config(WORK_DIR / name, pretrained, BASE_ITERS)
        found[name] = kept(WORK_DIR / f'{name}.json', lambda config=config: train_and_evaluate(config))
    config = pmt_config(WORK_DIR / 'base_pmt', checkpoint_of(best_base()))
    found['base_pmt'] = kept(WORK_DIR / 'base_pmt.json', lambda: train_and_evaluate(config))
    return found


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t-interval."""
    from scipy import stats

    width = statistics.stdev(differences) / math.sqrt(len(differences)) * stats.t.ppf(0.975, len(differences) - 1)
    return statistics.mean(differences), float(width)


def differences(runs: dict[str, dict], name: str, other: str, light: str, numbers: Sequence[int]) -> list[float]:
    """mIoU of a variant less another's, of the same frames and seed."""
    pairs = itertools.product(numbers, SEEDS)
    return [runs[name][f'{n}_{seed}'][light] - runs[other][f'{n}_{seed}'][light] for n, seed in pairs]


def table(rows: list[list[str]]) -> str:
    """Rows in Markdown, the first one heads."""
    rows = [rows[0], ['---', *['---:'] * (len(rows[0]) - 1)], *rows[1:]]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def quality_table(base: dict, runs: dict[str, dict], light: str) -> str:
    """Mean mIoU over the seeds, by number of frames."""
    rows = [['variant', 'trained', 'learning rate', *(f'{n} frames' for n in NUM_FRAMES)]]
    rows.append(['base, not adapted', '-', '-', *[f'{base[light]:.1f}'] * len(NUM_FRAMES)])
    for name, found in runs.items():
        means = (statistics.mean(found[f'{n}_{seed}'][light] for seed in SEEDS) for n in NUM_FRAMES)
        trained = found[f'{NUM_FRAMES[0]}_{SEEDS[0]}']['trained_parameters']
        rows.append([name, f'{trained:,}', f'{found["lr"]:.0e}', *(f'{mean:.1f}' for mean in means)])
    return table(rows)


def longer_table(runs: dict[str, dict], longer: dict[str, list[dict]]) -> str:
    """Mean mIoU of the runs of four times the iterations, beside those of the others."""
    rows = [['variant', *(f'{light}, {n} iterations' for light in LIGHTS for n in (ITERS, LONGER_ITERS))]]
    for name, found in longer.items():
        short = [runs[name][f'{NUM_FRAMES[-1]}_{seed}'] for seed in SEEDS]
        rows.append([name, *(f'{statistics.mean(r[light] for r in of):.1f}' for light in LIGHTS for of in (short, found))])
    return table(rows)


def paired_table(runs: dict[str, dict], other: str) -> str:
    """Paired differences with 95 % intervals."""
    few, many = NUM_FRAMES[:2], NUM_FRAMES[2:]
    columns = [(light, numbers) for light in LIGHTS for numbers in (few, many)]
    rows = [[f'less {other}', *(f'{light}, {" or ".join(map(str, numbers))} frames' for light, numbers in columns)]]
    for name in runs:
        if name != other:
            found = (interval(differences(runs, name, other, light, numbers)) for light, numbers in columns)
            rows.append([name, *(f'{mean:+.1f} ± {width:.1f}' for mean, width in found)])
    return table(rows)


def chart(base: dict, runs: dict[str, dict], out: Path) -> None:
    """mIoU at dusk over the number of frames, and at dusk over by day."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout='constrained')
    colours = pyplot.get_cmap('tab20').colors
    for i, (name, found) in enumerate(runs.items()):
        dusk, day = ([[found[f'{n}_{seed}'][light] for seed in SEEDS] for n in NUM_FRAMES] for light in LIGHTS)
        means = [statistics.mean(values) for values in dusk]
        left.plot(NUM_FRAMES, means, marker='o', markersize=3, color=colours[i % 20], label=name)
        right.scatter(statistics.mean(day[-1]), means[-1], color=colours[i % 20], label=name)
    left.set(xscale='log', xticks=NUM_FRAMES, xticklabels=NUM_FRAMES, xlabel='frames at dusk', ylabel='mIoU at dusk, %')
    left.minorticks_off()
    left.axhline(base['dusk'], color='grey', linestyle=':', label='base')
    right.scatter(base['day'], base['dusk'], color='grey', marker='x', label='base')
    right.set(xlabel='mIoU by day, % (what is kept)', ylabel='mIoU at dusk, %', title=f'{NUM_FRAMES[-1]} frames')
    left.legend(fontsize=7, ncols=2)
    with whole_file(out) as new:
        figure.savefig(new, dpi=110, format='png')
    pyplot.close(figure)


def read_runs(names: Sequence[str]) -> dict[str, dict]:
    """The figures of all runs of these variants."""
    runs: dict[str, dict] = {}
    for name in names:
        runs[name] = dict(lr=best_lr(name))
        for number, seed in itertools.product(NUM_FRAMES, SEEDS):
            runs[name][f'{number}_{seed}'] = json.loads(result_file('adapted', name, number, seed).read_text())
    return runs


def report(names: Sequence[str], found: dict[str, dict]) -> None:
    """Print the tables; write figures and chart."""
    runs, base = read_runs(names), found[best_base()]
    out = RESULTS if list(names) == list(VARIANTS) else WORK_DIR / RESULTS.name
    longer = {
        name: [json.loads(result_file('longer', name, seed).read_text()) for seed in SEEDS]
        for name in LONGER
        if name in names
    }
    searches = {name: {f: json.loads(result_file('search', name, f).read_text())['dusk'] for f in FACTORS} for name in names}
    settings = dict(iters=ITERS, base_iters=BASE_ITERS, batch=BATCH, masked_steps=MASKED_STEPS, seeds=SEEDS, factors=FACTORS)
    spent = [run['cpu_seconds'] for of in runs.values() for run in of.values() if isinstance(run, dict)]
    figures = dict(
        settings=settings,
        best_base=best_base(),
        bases=found,
        searches=searches,
        runs=runs,
        longer=longer,
        cpu_hours=sum(spent) / 3600,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as new:
        new.write_text(json.dumps(figures, indent=1) + '\n')
    chart(base, runs, out.with_suffix('.png'))
    for name in (*BASES, 'base_pmt'):
        print(f'{name}: dusk {found[name]["dusk"]:.1f} %, day {found[name]["day"]:.1f} %')
    for light in LIGHTS:
        print(f'\nmIoU {"at " if light == "dusk" else "by "}{light}, %, mean of {len(SEEDS)} seeds\n')
        print(quality_table(base, runs, light))
    print(f'\nPaired differences in mIoU, mean and 95 % interval\n\n{paired_table(runs, "head")}')
    print(f'\n{NUM_FRAMES[-1]} frames, {LONGER_ITERS} iterations\n\n{longer_table(runs, longer)}')
    print(f'\nAll figures: {out}, {out.with_suffix(".png")}')


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workers', type=int, default=2, help='processes of one thread each (2)')
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS), choices=VARIANTS, help='only these (all)')
    parser.add_argument('--fresh', action='store_true', help=f'delete {WORK_DIR} and start over')
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.fresh:
        shutil.rmtree(WORK_DIR, ignore_errors=True)
    write_lists()
    torch.set_num_threads(1)
    found = bases()
    for claimed in WORK_DIR.glob('*/*.claimed'):
        claimed.unlink()  # of a benchmark that was stopped
    workers = [multiprocessing.Process(target=work, args=(args.variants, i)) for i in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit('A run failed; what is finished is kept.')
    report(args.variants, found)


if __name__ == '__main__':
    main()
