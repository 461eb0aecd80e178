#!/usr/bin/env python
"""Time and memory of EoMT here and in Hugging Face's transformers, at equal weights.

    python benchmarks/speed.py [--device cpu|cuda] [--rounds 4] [--only headline inference training assembly tricks]

Both models get the same random weights, images and labels; before anything is timed, their outputs are compared. Each time
is a median over rounds in which the candidates take turns, after one round that does not count. Memory is the most that a
call takes above what the process has before it (on a GPU, above what is allocated), measured in a call of its own.

- headline: a training step of a ViT-S at 512×512, batch 2: forward, losses of all layers, backward; all parameters and LoRA.
- inference: image to class scores of all pixels, and training: a step of all parameters; over image sizes and batches.
- assembly: semantic inference (queries' masks and classes to scores) at 1024×1024, as it is written, in strips, and with
  80 of 100 queries excluded.
- tricks: the headline step and an inference at 1024×1024 with one trick undone at a time; undoing the layout of the mask
  module undoes what stands on it.

Each section runs in a process of its own. Prints tables and writes speed_<device>.json and speed_<device>.png. On a
CPU the model is a ViT-S in fp32; on a GPU ViT-S, B and L in bf16; the total of its ViT-L with LoRA is without
optimizer states. LoRA here is one pair of rank 16 on queries, keys and values together, in transformers one on each,
as their layers are. Needs Linux for the memory of a CPU. Labels are blocks of 19 random classes, so that nearly all
are present.
"""

import argparse
import contextlib
import copy
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import torch
import torch.nn.functional as F
from torch import Tensor

import mmseg_eomt  # noqa: F401  repairs what the toolbox needs
from benchmarks.candidates import (
    QUERIES,
    Ours,
    check_losses,
    check_scores,
    example,
    models,
    scores_as_written,
    step,
    weighted_as_written,
    with_lora,
)
from benchmarks.meter import Meter
from mmseg_eomt.models import eomt_head, layers, losses, mask_module, semantic_inference
from mmseg_eomt.models.arch import ARCHS

RESULTS = Path(__file__).with_name('results')
SECTIONS = ('headline', 'inference', 'training', 'assembly', 'tricks')


def row(title: str, **figures: object) -> dict:
    """Print and return a result: of two candidates, the speed-up of the first, and its memory over that of the second."""
    candidates = {name: figure for name, figure in figures.items() if isinstance(figure, dict)}
    print(f'{title:<46}', end='')
    print('   '.join(f'{name} {f["seconds"]:.3f} s {f["peak_mb"]} MB' for name, f in candidates.items()), end='')
    if len(candidates) == 2:
        first, second = candidates.values()
        figures['speed'] = round(second['seconds'] / first['seconds'], 2)
        figures['memory'] = round(first['peak_mb'] / second['peak_mb'], 2) if first['peak_mb'] else None
        print(f'   {figures["speed"]}× speed-up, {figures["memory"]}× the memory', end='')
    print(flush=True)
    return dict(title=title, **figures)


def headline(meter: Meter, arch: str, device: str) -> list[dict]:
    """A training step, all parameters and LoRA, with and without activation checkpointing."""
    image, labels = example(512, 2, device)
    ours, theirs = models(arch, 512, device)
    rows = [dict(scores=check_scores(ours, theirs, image), losses=check_losses(ours, theirs, image, labels))]
    lora, their_lora = with_lora(ours, theirs)
    again, lora_again = copy.deepcopy(ours), copy.deepcopy(lora)
    again.recompute(True)
    lora_again.recompute(True)
    candidates = dict(
        ours=ours, again=again, lora=lora, lora_again=lora_again, hugging_face=theirs, hugging_face_lora=their_lora
    )
    taken = meter({name: partial(step, model.train(), image, labels) for name, model in candidates.items()})
    for title, mine, reference in (
        ('step, all parameters', 'ours', 'hugging_face'),
        ('step, all, activation checkpointing', 'again', 'hugging_face'),
        ('step, LoRA against all', 'lora', 'hugging_face'),
        ('step, LoRA against LoRA', 'lora', 'hugging_face_lora'),
        ('step, LoRA, activation checkpointing', 'lora_again', 'hugging_face_lora'),
    ):
        rows.append(row(f'{arch} 512 batch 2: {title}', ours=taken[mine], hugging_face=taken[reference]))
    return rows


def sweep(kind: str, meter: Meter, arch: str, device: str, sides: tuple[int, ...], batches: tuple[int, ...]) -> list[dict]:
    """Inference or training steps over image sizes and batches; what would not fit the memory is skipped."""
    rows = []
    for side in sides:
        ours, theirs = models(arch, side, device)
        per_image = 0
        for batch in batches:
            image, labels = example(side, batch, device)
            if per_image * batch > 0.7 * _total_mb(device):
                print(f'{arch} {side} batch {batch}: skipped, it would take about {per_image * batch / 1024:.0f} GB')
                continue
            error = check_scores(ours, theirs, image)
            theirs.model.attn_mask_probs.fill_(float(kind == 'training'))
            candidates = dict(ours=ours.train(kind == 'training'), hugging_face=theirs.train(kind == 'training'))
            with torch.set_grad_enabled(kind == 'training'):
                taken = meter(
                    {
                        name: partial(step, model, image, labels) if kind == 'training' else partial(model.scores, image)
                        for name, model in candidates.items()
                    }
                )
            per_image = (taken['hugging_face']['peak_mb'] or 0) / batch
            rows.append(row(f'{arch} {side} batch {batch}', side=side, batch=batch, arch=arch, error=error, **taken))
    return rows


def _total_mb(device: str) -> float:
    if device == 'cuda':
        return torch.cuda.get_device_properties(0).total_memory / 2**20
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**20


def assemble(meter: Meter, device: str) -> list[dict]:
    """Scores at 1024×1024 from masks at a quarter of it; 80 queries are almost certainly no object."""
    torch.manual_seed(0)
    masks, classes, size = 3 * torch.randn(1, QUERIES, 256, 256, device=device), torch.randn(1, QUERIES, 20), (1024, 1024)
    classes[:, 20:, -1] += 12
    classes = classes.to(device)
    weights = classes.softmax(-1)[..., :-1]
    tolerance = 1e-3
    strips = semantic_inference.pixel_scores(masks, weights, size, size)
    dropped = semantic_inference.pixel_scores(masks, weights, size, size, tolerance)
    expected = scores_as_written(masks, classes, size)
    best = weights.amax(-1)
    bound = float(best[best < tolerance].sum())
    errors = dict(strips=float((strips - expected).abs().max()), dropped=float((dropped - expected).abs().max()))
    if errors['strips'] > 1e-5 or errors['dropped'] > bound:
        sys.exit(f'The scores differ by {errors}, more than the bound {bound:.1e}.')
    del strips, dropped, expected
    taken = meter(
        dict(
            as_written=lambda: scores_as_written(masks, classes, size),
            strips=lambda: semantic_inference.pixel_scores(masks, classes.softmax(-1)[..., :-1], size, size),
            dropped=lambda: semantic_inference.pixel_scores(masks, classes.softmax(-1)[..., :-1], size, size, tolerance),
        )
    )
    return [
        row('semantic inference in strips', ours=taken['strips'], as_written=taken['as_written'], error=errors['strips']),
        row(
            f'semantic inference, queries below {tolerance} excluded',
            ours=taken['dropped'],
            as_written=taken['as_written'],
            error=errors['dropped'],
            bound=bound,
        ),
    ]


class OneCallAttention(layers.Attention):
    """All rows with an N×N mask, as the method is written."""

    def forward(self, x: Tensor, query_mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None
        if query_mask is not None:
            mask = F.pad(query_mask, (0, 0, 0, N - query_mask.shape[1]), value=True)[:, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, N, C))


class ChannelsFirst(mask_module.ScaleBlock):
    """The scale block in the memory layout of convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return self.norm(self.conv2(F.gelu(self.conv1(x))).permute(0, 2, 3, 1)).contiguous(
            memory_format=torch.contiguous_format
        )


def logits_as_written(blocks: mask_module.Upscale, queries: Tensor, patches: Tensor) -> Tensor:
    for block in blocks:
        patches = block(patches)
    return torch.einsum('bqc,bhwc->bqhw', queries, patches)


@contextlib.contextmanager
def undone(trick: str):
    """Every model with one trick undone."""
    changed: list[tuple[object, str, object]] = []

    def change(owner: object, name: str, value: object) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    if trick == 'two-call attention, contiguous heads':
        change(layers.Attention, 'forward', OneCallAttention.forward)
    elif trick == 'mask module channels last':
        change(mask_module.ScaleBlock, 'forward', ChannelsFirst.forward)
        change(mask_module.Upscale, 'forward', logits_as_written)
    elif trick == 'two maps kept, strips':
        change(mask_module.Upscale, 'forward', logits_as_written)
    elif trick == 'strips alone':
        change(mask_module, 'STRIP_ELEMENTS', 10**12)
    elif trick == 'points of some masks at a time':
        change(losses, 'MASKS_AT_ONCE', 10**6)
    elif trick == 'scores in strips':
        change(eomt_head, 'pixel_scores', lambda masks, weights, padded, size, _: weighted_as_written(masks, weights, size))
    try:
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)


TRICKS = {
    'step': (
        'two-call attention, contiguous heads',
        'mask module channels last',
        'two maps kept, strips',
        'strips alone',
        'points of some masks at a time',
    ),
    'inference': ('two-call attention, contiguous heads', 'mask module channels last', 'strips alone', 'scores in strips'),
}


def _with_undone(trick: str, kind: str, model: Ours, image: Tensor, labels: Tensor) -> None:
    with undone(trick), torch.set_grad_enabled(kind == 'step'):
        step(model.train(), image, labels) if kind == 'step' else model.eval().scores(image)


def tricks(meter: Meter, arch: str, device: str) -> list[dict]:
    """What each trick brings: everything with it undone over everything."""
    rows = []
    for kind, side, batch in (('step', 512, 2), ('inference', 1024, 1)):
        ours, _ = models(arch, side, device)
        image, labels = example(side, batch, device)

        taken = meter(
            {
                'ours': partial(_with_undone, '', kind, ours, image, labels),
                **{trick: partial(_with_undone, trick, kind, ours, image, labels) for trick in TRICKS[kind]},
            }
        )
        for trick in TRICKS[kind]:
            rows.append(row(f'{kind}: {trick}', ours=taken['ours'], without=taken[trick]))
    return rows


def matrix_rate(device: str) -> float:
    """Measured FLOP/s of large bf16 matrix products."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    meter = Meter(device, 10)
    return 2 * 8192**3 / meter(dict(product=lambda: a @ a))['product']['seconds']


def large_lora(meter: Meter, device: str) -> list[dict]:
    """ViT-L, 640×640, batch 4, LoRA: total memory, tokens per second and fraction of the matrix rate."""
    ours, theirs = models('large', 640, device)
    ours, _ = with_lora(ours, theirs)
    del theirs
    image, labels = example(640, 4, device)
    size, tokens = ARCHS['large'], 4 * (640 // 16) ** 2
    # forward and the gradients of what goes in, of the linear layers and the attention; the mask module comes on top
    per_token = 4 * size.num_layers * (12 * size.embed_dims**2 + 2 * size.embed_dims * tokens // 4)
    rate = matrix_rate(device)
    rows = []
    for again in (False, True):
        ours.recompute(again)
        gc.collect()
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated() / 2**20
        taken = meter(dict(ours=lambda: step(ours.train(), image, labels)))['ours']
        speed = tokens / taken['seconds']
        rows.append(
            row(
                f'ViT-L 640 batch 4 LoRA{" recomputed" if again else ""}',
                ours=taken,
                total_gb=round((held + taken['peak_mb']) / 1024, 2),
                tokens_per_second=round(speed),
                share_of_matrix_rate=round(speed * per_token / rate, 3),
            )
        )
        print('   ', {name: rows[-1][name] for name in ('total_gb', 'tokens_per_second', 'share_of_matrix_rate')})
    return rows


def chart(results: dict, file: Path) -> None:
    """Time and memory over the image's area, at a batch of 1."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    kinds = [kind for kind in ('inference', 'training') if results.get(kind)]
    if not kinds:
        return
    figure, axes = pyplot.subplots(len(kinds), 2, figsize=(10, 4 * len(kinds)), squeeze=False)
    for line, kind in zip(axes, kinds):
        for axis, field, unit in zip(line, ('seconds', 'peak_mb'), ('s', 'MB')):
            for arch, name in itertools.product(sorted({r['arch'] for r in results[kind]}), ('hugging_face', 'ours')):
                rows = [r for r in results[kind] if r['batch'] == 1 and r['arch'] == arch]
                label = f'ViT {arch}, {"mmseg-eomt" if name == "ours" else "transformers"}'
                axis.plot([r['side'] ** 2 / 1e6 for r in rows], [r[name][field] for r in rows], marker='o', label=label)
            axis.set(
                xlabel='megapixels', ylabel=unit, ylim=(0, None), title=f'{kind}: {"time" if unit == "s" else "memory"}'
            )
            axis.legend()
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=SECTIONS, metavar='SECTION', help=', '.join(SECTIONS))
    parser.add_argument('--sides', type=int, nargs='+', default=[512, 768, 1024], help='multiples of 16')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args()
    meter = Meter(args.device, args.rounds)
    archs = ('small', 'base', 'large') if args.device == 'cuda' else ('small',)
    name = torch.cuda.get_device_name() if args.device == 'cuda' else f'{platform.machine()} CPU'
    if len(args.only) > 1:  # each in a process of its own, which finds no memory that another has left
        options = ['--device', args.device, '--rounds', args.rounds, '--out', args.out, '--sides', *args.sides]
        for section in args.only:
            command = [sys.executable, __file__, *options, '--batches', *args.batches, '--only', section]
            subprocess.run(list(map(str, command)), check=True)
        return
    results: dict = dict(
        device=f'{name}, {torch.get_num_threads()} CPU threads',
        precision='bf16' if args.device == 'cuda' else 'fp32',
        rounds=args.rounds,
        versions={package: metadata.version(package) for package in ('torch', 'transformers', 'peft')},
    )
    print(results['device'], results['precision'], results['versions'])
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f'speed_{args.device}.json'
    if file.is_file():  # with the other sections
        results = {**json.loads(file.read_text()), **results}
    (section,) = args.only
    print(f'\n{section}', flush=True)
    if section == 'assembly':
        results[section] = assemble(meter, args.device)
    elif section in ('headline', 'tricks'):
        measure = headline if section == 'headline' else tricks
        results[section] = [line for arch in archs for line in measure(meter, arch, args.device)]
    else:
        sizes = (tuple(args.sides), tuple(args.batches))
        results[section] = [line for arch in archs for line in sweep(section, meter, arch, args.device, *sizes)]
    if section == 'headline' and args.device == 'cuda':
        results['large_lora'] = large_lora(meter, args.device)
    file.write_text(json.dumps(results, indent=1) + '\n')
    chart(results, file.with_suffix('.png'))
    print(f'\nWritten to {file} and {file.with_suffix(".png").name}.')


if __name__ == '__main__':
    main()
