"""How much memory a config takes, before it runs, and the fastest of its settings that fit a GPU.

    python tools/plan.py CONFIG [--gpu-memory 8] [--cfg-options …]

Predicts the peak of a training step and of evaluation, by part, for a GPU or with --device cpu for a CPU. Neither a GPU
nor the data nor the weights are needed: nothing is run. docs/memory.md says what is counted and what is assumed.

With --gpu-memory, batch, accumulation, activation checkpointing, precision and, with a LoRAHook, the precision of the base
are searched for the fastest setting that fits. Its effective batch size and its steps of the optimizer are the config's.
The last line that is printed goes behind tools/train.py CONFIG.
"""

import argparse
from collections.abc import Sequence

from mmengine.config import Config, DictAction
from mmseg.utils import register_all_modules

from mmseg_eomt.commands import errors_in_a_sentence
from mmseg_eomt.memory.predict import CLASSES_IN_IMAGE, crop_size, predict
from mmseg_eomt.memory.report import option_line, table
from mmseg_eomt.memory.search import CONTEXT_BYTES, GAPS, changed, fastest


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a training run')
    parser.add_argument('--gpu-memory', type=float, metavar='GB', help='of one GPU: search for settings that fit')
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='GPUs that share an effective batch (1)')
    parser.add_argument('--precision', choices=('any', 'fp32', 'bf16'), default='any', help='that the search may take (any)')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='whose peak is predicted (cuda)')
    parser.add_argument(
        '--image', type=int, nargs=2, metavar=('H', 'W'), help='to evaluate (rows and twice the columns of a crop)'
    )
    parser.add_argument(
        '--classes-in-image',
        type=int,
        default=CLASSES_IN_IMAGE,
        metavar='N',
        help=f'masks to learn per image ({CLASSES_IN_IMAGE}, or all classes where there are fewer)',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes of the config, as in the toolbox')
    args = parser.parse_args(argv)
    if args.gpu_memory is not None and (args.gpu_memory <= 0 or args.device == 'cpu'):
        parser.error('--gpu-memory is the memory of a GPU in GB, above 0, and does not go with --device cpu.')
    if min(args.gpus, args.classes_in_image, *(args.image or [1])) < 1:
        parser.error('--gpus, --classes-in-image and --image are numbers from 1 on.')
    with errors_in_a_sentence('plan'):
        plan(args)


def plan(args: argparse.Namespace) -> None:
    """Predict, search and print."""
    register_all_modules()
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    assumed = dict(classes_in_image=args.classes_in_image, image=tuple(args.image) if args.image else None)
    if args.gpu_memory is None:
        show(config, args.device, assumed)
        return
    precisions = ('bf16', 'fp32') if args.precision == 'any' else (args.precision,)
    fit = fastest(config, args.gpu_memory * 1e9, args.gpus, precisions, **assumed)
    show(changed(config, fit.options), 'cuda', assumed)
    print(
        f'\nThe fastest setting that fits {args.gpu_memory:g} GB, of which {CONTEXT_BYTES / 1e9:.1f} GB and {GAPS:.0%} are '
        f'left for CUDA: {fit.setting.batch} images per GPU × {args.gpus} × {fit.setting.accumulation} accumulation steps.'
    )
    given = {name: value for name, value in (args.cfg_options or {}).items() if name not in fit.options}
    options = {**given, **fit.options}
    print(option_line(options) if options else 'The config as it is.')


def show(config: Config, device: str, assumed: dict) -> None:
    """Predict and print the peaks of one setting."""
    peaks = table(predict(config, device, **assumed))
    height, width = crop_size(config)
    print(
        f'Predicted on {"a GPU" if device == "cuda" else "a CPU"}: {config.train_dataloader.batch_size} images of '
        f'{height}×{width} per iteration; nothing was run.\n\n{peaks}'
    )
