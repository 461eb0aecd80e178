"""End-to-end demo on synthetic data: train a small EoMT by day, adapt it to dusk with LoRA, evaluate before and after.

    python tools/demo.py [--overwrite]

It runs the commands that a user would (tools/make_street_scenes.py, tools/train.py, tools/test.py), each printed before it
runs, and writes work_dirs/demo.png. A second run starts over: it deletes what the first has made, even if that was killed.
Where there is anything else in the demo's folders, such as adapters exported to them or a checkpoint of another training, it
stops before it changes a file; --overwrite lets it go on.
"""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmseg.datasets import CityscapesDataset

from mmseg_eomt.commands.demo_run import WORK_DIRS, Demo

SCENES = Path('data/street_scenes')
BASE, LORA = 'eomt_demo', 'eomt_lora_demo'
MIN_GAIN = 15.0
DEMO = Demo('demo', SCENES, ['*_000019_*.png'], [f'{name}{end}' for name in (BASE, LORA) for end in ('', '_on_dusk')])


def evaluate(title: str, name: str, checkpoint: Path, look: str) -> float:
    """mIoU in per cent of a checkpoint on the validation scenes of a look; predictions go to <work dir>/<look>."""
    work_dir = WORK_DIRS / f'{name}_on_{look}'
    prefix = 'test_dataloader.dataset.data_prefix'
    options = (f'{prefix}.img_path=leftImg8bit/val/{look}', f'{prefix}.seg_map_path=gtFine/val/{look}')
    out = ('--out', work_dir / 'predictions')
    return DEMO.evaluate(title, name, checkpoint, work_dir, *out, '--cfg-options', *options)['mIoU']


def draw(before: Path, after: Path, num_rows: int = 4) -> None:
    """One row a scene: input, truth, prediction before, prediction after. Ignored pixels are black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:19] = np.array(CityscapesDataset.METAINFO['palette'])[:, ::-1]
    rows = []
    for image in sorted((DEMO.root / SCENES / 'leftImg8bit/val/dusk').glob('*.png'))[:num_rows]:
        truth = DEMO.root / SCENES / 'gtFine/val/dusk' / image.name.replace('leftImg8bit', 'gtFine_labelTrainIds')
        maps = [truth, before / image.name, after / image.name]
        rows.append([mmcv.imread(image), *(palette[mmcv.imread(path, 'grayscale')] for path in maps)])
    DEMO.draw(rows, ('input', 'truth', 'before LoRA', 'after LoRA'))


def adapter_size(checkpoint: Path) -> tuple[int, float]:
    """Number of the adapters' parameters in a checkpoint, and their size in kB."""
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
    adapters = [value for name, value in weights.items() if '.lora_' in name]
    return sum(v.numel() for v in adapters), sum(v.numel() * v.element_size() for v in adapters) / 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    DEMO.main(argv, __doc__, run_all)


def run_all() -> str:
    """Run the six steps and print what came of them; what is wrong with it, or nothing."""
    base, lora = WORK_DIRS / BASE / 'iter_600.pth', WORK_DIRS / LORA / 'iter_200.pth'
    sizes = ('--train', 96, '--val', 24)
    DEMO.run('1/6 Draw street scenes by day and at dusk', 'tools/make_street_scenes.py', SCENES, *sizes)
    DEMO.run('2/6 Train a small model by day', 'tools/train.py', f'configs/{BASE}.py')
    before = evaluate('3/6 Evaluate it at dusk', BASE, base, 'dusk')
    DEMO.run('4/6 Adapt it to dusk with LoRA', 'tools/train.py', f'configs/{LORA}.py')
    after = evaluate('5/6 Evaluate it at dusk again', LORA, lora, 'dusk')
    print('\n=== 6/6 Draw the predictions', flush=True)
    by_day, adapted = (DEMO.root / WORK_DIRS / f'{name}_on_dusk' / 'predictions' for name in (BASE, LORA))
    draw(by_day, adapted)

    count, size = adapter_size(DEMO.root / lora)
    print(f'\nmIoU at dusk before LoRA  {before:5.2f} %')
    print(f'mIoU at dusk after LoRA   {after:5.2f} %')
    print(f'adapters                  {count:,} parameters, {size:,.0f} kB')
    gain = after - before
    return '' if gain >= MIN_GAIN else f'LoRA gained {gain:.1f} points of mIoU, less than the {MIN_GAIN:.0f} expected.'
