#!/usr/bin/env python
"""Time and memory of EoMT here and in Hugging Face's transformers, at equal weights.

    python benchmarks/speed.py [--device cpu|cuda] [--rounds 4] [--only headline gpu …] [--page docs/performance.md]
    python benchmarks/speed.py --only --against lightly_train path/to/a/checkout/of/tue-mps/eomt

Both models get the same random weights, images and labels; before anything is timed, their outputs are compared. Each time
is a median over rounds in which the candidates take turns, after one round that does not count. Memory is the most that a
call takes above what the process has before it (on a GPU, above what is allocated), measured in a call of its own.

- headline: a training step of a ViT-S at 512×512, batch 2: forward, losses of all layers, backward; all parameters and LoRA.
- inference: image to class scores of all pixels, and training: a step of all parameters; over image sizes and batches, on a
  CPU up to 2.2 and 1.2 megapixels.
- assembly: semantic inference (queries' masks and classes to scores) at 1024×1024, as it is written, in strips, and with
  80 of 100 queries excluded.
- growth: one image's inference and step over tokens, queries and classes, attention and all else apart.
- tricks: the headline step and an inference at 1024×1024 with one trick undone at a time; undoing the layout of the mask
  module undoes what stands on it.
- options: compilation, a fused AdamW, and activation checkpointing of the predictions alone, off and on, at 512×512.
- gpu: inference and steps in fp32 and bf16, eager and compiled, beside the planner's prediction; with LoRA, memory without
  optimizer states and the fraction of the matrix rate. Only on a GPU.
- against: inference and a step against other implementations, where --against names them.

Each section runs in a process of its own. Prints tables and writes speed_<device>.json and speed_<device>.png; --page puts
the tables into a page, and --only without a section measures none of these. On a CPU the model is a ViT-S in fp32; on a GPU
ViT-S, B and L in bf16. LoRA here is one pair of rank 16 on queries, keys and values together, in transformers one on each,
as their layers are. Needs Linux for the memory of a CPU. Labels are blocks of 19 random classes, so that nearly all are
present.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the plugin

import torch

import mmseg_eomt  # noqa: F401  repairs what the toolbox needs
from benchmarks.meter import Meter
from benchmarks.report import chart, fill_page, tables
from benchmarks.sections.against import against
from benchmarks.sections.assembly import assemble
from benchmarks.sections.gpu import gpu, large_lora
from benchmarks.sections.growth import growth
from benchmarks.sections.options import options
from benchmarks.sections.steps import headline, sweep
from benchmarks.sections.tricks import tricks

RESULTS = Path(__file__).with_name('results')
SECTIONS = ('headline', 'inference', 'training', 'assembly', 'growth', 'tricks', 'options', 'gpu', 'against')


def measure(section: str, meter: Meter, args: argparse.Namespace) -> dict[str, list[dict]]:
    """A section's results, and of what else is measured with it."""
    archs, device = args.archs, args.device
    each: dict[str, Callable[[str], list[dict]]] = dict(
        headline=lambda arch: headline(meter, arch, device),
        tricks=lambda arch: tricks(meter, arch, device),
        growth=lambda arch: growth(meter, arch, device),
        options=lambda arch: options(meter, arch, device),
        gpu=lambda arch: gpu(meter, arch, device),
        inference=lambda arch: sweep('inference', meter, arch, device, args.sides, args.batches),
        training=lambda arch: sweep('training', meter, arch, device, args.sides, args.batches),
    )
    if section == 'assembly':
        return dict(assembly=assemble(meter, device))
    if section == 'against':
        return dict(
            against=[result for arch in archs for name in args.against for result in against(meter, name, arch, device)]
        )
    found = {section: [result for arch in archs for result in each[section](arch)]}
    if section == 'gpu':
        found['large_lora'] = large_lora(meter, archs[-1], device)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--only', nargs='*', choices=SECTIONS, metavar='SECTION', help=', '.join(SECTIONS[:-1]))
    parser.add_argument(
        '--against', nargs='+', default=[], metavar='OTHER', help='lightly_train, or the path of a checkout of tue-mps/eomt'
    )
    parser.add_argument('--archs', nargs='+', choices=('small', 'base', 'large'), help='default: small, on a GPU all')
    parser.add_argument('--sides', type=int, nargs='+', default=[512, 768, 1024], help='multiples of 16')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--out', type=Path, default=RESULTS)
    parser.add_argument('--page', type=Path, help='a page whose tables are written anew, docs/performance.md')
    args = parser.parse_args()
    on_gpu = args.device == 'cuda'
    args.archs = args.archs or (['small', 'base', 'large'] if on_gpu else ['small'])
    if args.only is None:
        args.only = [section for section in SECTIONS[:-1] if on_gpu or section != 'gpu']
    if args.against and 'against' not in args.only:
        args.only.append('against')
    return args


def run_section(section: str, args: argparse.Namespace, file: Path) -> None:
    """Measure a section and write it beside the others."""
    name = torch.cuda.get_device_name() if args.device == 'cuda' else f'{platform.machine()} CPU'
    about = dict(
        device=f'{name}, {torch.get_num_threads()} CPU threads',
        precision='bf16' if args.device == 'cuda' else 'fp32',
        rounds=args.rounds,
        versions={package: metadata.version(package) for package in ('torch', 'transformers', 'peft')},
    )
    print(f'\n{section}: {about["device"]}, {about["precision"]}, {about["versions"]}', flush=True)
    found = measure(section, Meter(args.device, args.rounds), args)
    others = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**others, **about, **found}, indent=1) + '\n')


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f'speed_{args.device}.json'
    if len(args.only) == 1 and not args.page:
        run_section(*args.only, args, file)
    else:  # each in a process of its own, which finds no memory that another has left
        given = ['--device', args.device, '--rounds', args.rounds, '--out', args.out, '--archs', *args.archs]
        given += ['--sides', *args.sides, '--batches', *args.batches]
        for section in args.only:
            others = ['--against', *args.against] if section == 'against' else []
            subprocess.run([sys.executable, __file__, *map(str, given), '--only', section, *others], check=True)
        results = json.loads(file.read_text())
        for section, lines in tables(results).items():
            print(f'\n{section}', *lines, sep='\n')
        chart(results, file.with_suffix('.png'))
        if args.page:
            fill_page(args.page, file.stem, tables(results))
        print(f'\nWritten to {file} and {file.with_suffix(".png").name}.')


if __name__ == '__main__':
    main()
