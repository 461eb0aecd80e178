"""Demo of road anomalies on synthetic data: train a small EoMT, find unseen objects with it, train it with RbA, find again.

    python tools/demo_anomaly.py [--overwrite]

It runs the commands that a user would (tools/make_street_scenes.py, train.py, test_anomaly.py, predict.py), each printed
before it runs, and writes work_dirs/demo_anomaly.png. The objects that are looked for are barrels, crates, balls, animals,
tyres and cones. The outliers of training are of another kind: blobs, polygons and boxes with the texture of other training
images. A second run starts over, as that of tools/demo.py does; --overwrite lets it go on where others' files are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mmcv
import numpy as np

from mmseg_eomt.commands.demo_run import WORK_DIRS, Demo
from mmseg_eomt.visualization import heat_map

SCENES = Path('data/street_anomalies')
SET, PRESET = SCENES / 'RoadAnomaly21', 'course_road_anomaly_21'
BASE, RBA = 'eomt_anomaly_demo', 'eomt_lora_rba_demo'
SHOWN = 'rba'  # the score that is drawn and judged
SCORES = (SHOWN, 'max', 'msp', 'entropy', 'eam', 'void')
NUM_DRAWN = 6
MIN_GAIN, MAX_LOSS = 10.0, 4.0  # points of AP that RbA gains at least, and of mIoU that it loses at most
Metrics = dict[str, float]  # 'mIoU', and 'AP/rba' and the like
DEMO = Demo(
    'demo_anomaly',
    SCENES,
    ['*_000019_*.png', 'street_*.png'],
    [f'{name}{end}' for name in (BASE, RBA) for end in ('', '_anomalies', '_maps')],
)


def evaluate(title: str, name: str, checkpoint: Path) -> Metrics:
    """mIoU of a checkpoint on the validation scenes, and AP and FPR95 of its scores on those with anomalies, in per cent."""
    out = WORK_DIRS / f'{name}_anomalies'
    options = ('--data-root', SCENES, '--presets', PRESET, '--exact', '--scores', *SCORES, '--out', out)
    DEMO.run(title, 'tools/test_anomaly.py', f'configs/{name}.py', checkpoint, *options)
    results = json.loads((DEMO.root / out / 'results.json').read_text(encoding='utf-8'))
    metrics: Metrics = {}
    for dataset in results['datasets']:
        metrics.update(dataset['classes'])
        for score, values in dataset['scores'].items():
            metrics.update({f'{key}/{score}': value for key, value in values.items()})
    return metrics


def map_anomalies(title: str, name: str, checkpoint: Path, images: Sequence[Path]) -> list[np.ndarray]:
    """Score maps (H, W) of a checkpoint on some images."""
    out = WORK_DIRS / f'{name}_maps'
    options = ('--anomaly', SHOWN, '--score-format', 'npy', '--out', out)
    DEMO.run(title, 'tools/predict.py', f'configs/{name}.py', checkpoint, *images, *options)
    return [np.load(DEMO.root / out / f'anomaly/scores/{image.stem}.npy') for image in images]


def draw(images: Sequence[Path], before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
    """One row a scene: input, truth, scores before, scores after. What is ignored is grey in the truth and has no score."""
    rows = []
    for image, *maps in zip(images, before, after):
        picture = mmcv.imread(DEMO.root / image)
        label = mmcv.imread(DEMO.root / SET / 'labels_masks' / image.name, 'grayscale')
        truth = np.select([label == 1, label == 255], [255, 96], 0).astype(np.uint8)
        sure, none = -float(np.tanh(1)), 0.0  # scores of a pixel of one class, and of none
        counted = [np.where(label == 255, sure, scores) for scores in maps]
        heat = [heat_map(picture[..., ::-1], scores, sure, none)[..., ::-1] for scores in counted]
        rows.append([picture, np.repeat(truth[..., None], 3, axis=2), *heat])
    DEMO.draw(rows, ('input', 'truth', f'{SHOWN} before RbA', f'{SHOWN} after RbA'))


def table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """AP and FPR95 of each score, and the mIoU, before and after."""
    lines = [f'{"":10}{"before RbA":>18}{"after RbA":>20}', f'{"score":10}' + f'{"AP":>10}{"FPR95":>10}' * 2]
    for score in SCORES:
        numbers = [metrics[f'{key}/{score}'] for metrics in (before, after) for key in ('AP', 'FPR95')]
        lines.append(f'{score:10}' + ''.join(f'{number:10.2f}' for number in numbers))
    return '\n'.join([*lines, f'{"mIoU":10}{before["mIoU"]:10.2f}{after["mIoU"]:20.2f}'])


def judge(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What is wrong with what came out, or nothing."""
    gain, loss = after[f'AP/{SHOWN}'] - before[f'AP/{SHOWN}'], before['mIoU'] - after['mIoU']
    if gain < MIN_GAIN:
        return f'RbA gained {gain:.1f} points of AP, less than the {MIN_GAIN:.0f} expected.'
    return f'RbA lost {loss:.1f} points of mIoU, more than the {MAX_LOSS:.0f} expected.' if loss > MAX_LOSS else ''


def run_all() -> str:
    """Run the steps and print what came of them; what is wrong with it, or nothing."""
    base, rba = WORK_DIRS / BASE / 'iter_600.pth', WORK_DIRS / RBA / 'iter_300.pth'
    sizes = ('--train', 384, '--val', 24, '--anomalies', 64)
    DEMO.run('1/7 Draw street scenes, some with unseen objects', 'tools/make_street_scenes.py', SCENES, *sizes)
    DEMO.run('2/7 Train a small model on scenes without them', 'tools/train.py', f'configs/{BASE}.py')
    before = evaluate('3/7 Look for unseen objects with it', BASE, base)
    DEMO.run('4/7 Train it with RbA on pasted outliers of another kind', 'tools/train.py', f'configs/{RBA}.py')
    after = evaluate('5/7 Look for unseen objects again', RBA, rba)
    images = [SET / f'images/street_{i:04d}.png' for i in range(NUM_DRAWN)]
    maps = map_anomalies('6/7 Map the anomalies before', BASE, base, images)
    draw(images, maps, map_anomalies('7/7 Map the anomalies after', RBA, rba, images))
    print(f'\n{table(before, after)}\n')
    return judge(before, after)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    DEMO.main(argv, __doc__, run_all)
