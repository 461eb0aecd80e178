"""End-to-end demo on synthetic data: train a small EoMT by day, adapt it to dusk with LoRA, evaluate before and after.

    python tools/demo.py [--overwrite]

It runs the commands that a user would (tools/make_street_scenes.py, tools/train.py, tools/test.py), each printed before it
runs, and writes work_dirs/demo.png. A second run starts over: it deletes what the first has made, even if that was killed.
Where there is anything else in the demo's folders, such as adapters exported to them or a checkpoint of another training, it
stops before it changes a file; --overwrite lets it go on.
"""

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmseg.datasets import CityscapesDataset

from mmseg_eomt.configs import config_folder
from mmseg_eomt.whole import whole_file

ROOT = config_folder().parent
SCENES = Path('data/street_scenes')
BASE, LORA = 'eomt_demo', 'eomt_lora_demo'
WORK_DIRS = Path('work_dirs')
PICTURE = WORK_DIRS / 'demo.png'
LOG = WORK_DIRS / 'demo.log'
MADE = WORK_DIRS / 'demo.json'  # sizes and times of the files that the demo has made
SHOWN = re.compile(r'scenes in|Iter\(|Adapted model|^  \w.*(\d|% of all parameters train)$|matched layers|estimated sizes')
MIN_GAIN = 15.0
GRACE = 2 * 10**9  # nanoseconds around the times that are noted each second
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def run(title: str, *args: object) -> None:
    """Run a command of this repository and show what matters of its output; all of it goes to the log.

    If the command fails, its last lines are printed and the demo ends with status 1.
    """
    status, last = run_shown(title, [sys.executable, *map(str, args)])
    if status:
        sys.exit(f'{"".join(last)}\ndemo: "{title}" failed with status {status}; the whole output is in {LOG}.')


def run_shown(title: str, command: list[str]) -> tuple[int, deque[str]]:
    """Status and last lines of a command that is run; it ends with the demo, however that ends."""
    header = f'\n=== {title}\n$ {shlex.join(["python", *command[1:]])}'
    print(header, flush=True)
    last: deque[str] = deque(maxlen=25)
    output: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with (
        subprocess.Popen(command, cwd=ROOT, preexec_fn=end_with_parent, **output) as process,
        (ROOT / LOG).open('a', encoding='utf-8') as log,
    ):
        log.write(header + '\n')
        try:
            for line in process.stdout or ():
                log.write(line)
                last.append(line)
                if SHOWN.search(line):
                    print(line.rstrip()[:110], flush=True)
        except BaseException:
            process.kill()
            raise
    return process.returncode, last


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends: a killed demo's training would write on."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def folders() -> list[Path]:
    """The work directories of the demo's runs."""
    return [WORK_DIRS / f'{name}{end}' for name in (BASE, LORA) for end in ('', '_on_dusk')]


def files_there() -> dict[str, list[int]]:
    """Size and time of each file that a demo deletes or replaces."""
    inside = [file for folder in folders() for file in (ROOT / folder).rglob('*')]
    inside += (ROOT / SCENES).rglob('*_000019_*.png')
    files = sorted(file for file in (*inside, ROOT / PICTURE, ROOT / LOG) if file.is_file())
    return {file.relative_to(ROOT).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


@contextmanager
def noting_files() -> Iterator[None]:
    """Note that the files which are made meanwhile are the demo's: once it ends, on SIGTERM too.

    If it is killed, that it was running is noted: since when, and by the note's own time, until when.
    """
    note_files(running=time.time_ns())
    ended = threading.Event()
    clock = threading.Thread(target=keep_time, args=(ended,), daemon=True)
    clock.start()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ended.set()
        clock.join()
        note_files()


def keep_time(ended: threading.Event) -> None:
    """Keep the note's time up to date."""
    while not ended.wait(1):
        os.utime(ROOT / MADE)


def note_files(**running: int) -> None:
    """Write down that the files which are there are the demo's."""
    with whole_file(ROOT / MADE) as path:
        path.write_text(json.dumps(files_there() | running, indent=0), encoding='utf-8')


def files_of_others() -> list[str]:
    """Files that a demo deletes or replaces, and that no earlier one has made as they are."""
    try:
        made = json.loads((ROOT / MADE).read_text(encoding='utf-8'))
        last = (ROOT / MADE).stat().st_mtime_ns + GRACE
    except (OSError, ValueError):
        made, last = {}, 0
    first = made['running'] - GRACE if 'running' in made else last + 1  # 'running' is left by a demo that was killed
    there = files_there()
    return [name for name, state in there.items() if made.get(name) != state and not first <= state[1] <= last]


def start_over(overwrite: bool) -> None:
    """Delete what an earlier demo has made; end where that would touch files of others, unless they may be overwritten."""
    others = files_of_others()
    if others and not overwrite:
        more = f' and {len(others) - 1} other files' if len(others) > 1 else ''
        sys.exit(
            f'demo: {others[0]}{more} would be deleted or replaced, and no earlier demo has made them so: move them away, '
            f'or give --overwrite.'
        )
    for folder in folders():
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    for file in (PICTURE, LOG):
        (ROOT / file).unlink(missing_ok=True)
    (ROOT / WORK_DIRS).mkdir(exist_ok=True)


def evaluate(title: str, name: str, checkpoint: Path, look: str) -> float:
    """mIoU in per cent of a checkpoint on the validation scenes of a look; predictions go to <work dir>/<look>."""
    work_dir = WORK_DIRS / f'{name}_on_{look}'
    prefix = 'test_dataloader.dataset.data_prefix'
    run(
        title,
        *('tools/test.py', f'configs/{name}.py', checkpoint, '--work-dir', work_dir, '--out', work_dir / 'predictions'),
        *('--cfg-options', f'{prefix}.img_path=leftImg8bit/val/{look}', f'{prefix}.seg_map_path=gtFine/val/{look}'),
    )
    (metrics,) = (ROOT / work_dir).glob('*/*.json')
    return json.loads(metrics.read_text())['mIoU']


def draw(before: Path, after: Path, out: Path, num_rows: int = 4) -> None:
    """One row a scene: input, truth, prediction before, prediction after. Ignored pixels are black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:19] = np.array(CityscapesDataset.METAINFO['palette'])[:, ::-1]
    rows = []
    for image in sorted((ROOT / SCENES / 'leftImg8bit/val/dusk').glob('*.png'))[:num_rows]:
        truth = ROOT / SCENES / 'gtFine/val/dusk' / image.name.replace('leftImg8bit', 'gtFine_labelTrainIds')
        maps = [truth, before / image.name, after / image.name]
        labels = [palette[mmcv.imread(path, 'grayscale')] for path in maps]
        rows.append(np.hstack([mmcv.imread(image), *labels]))
    sheet = cv2.resize(np.vstack(rows), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    sheet = cv2.copyMakeBorder(sheet, 28, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    for i, title in enumerate(('input', 'truth', 'before LoRA', 'after LoRA')):
        place = (i * sheet.shape[1] // 4 + 8, 20)
        cv2.putText(sheet, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    if not cv2.imwrite(str(out), sheet):
        sys.exit(f'demo: {out} could not be written.')


def adapter_size(checkpoint: Path) -> tuple[int, float]:
    """Number of the adapters' parameters in a checkpoint, and their size in kB."""
    weights = torch.load(checkpoint, map_location='cpu', weights_only=True)['state_dict']
    adapters = [value for name, value in weights.items() if '.lora_' in name]
    return sum(v.numel() for v in adapters), sum(v.numel() * v.element_size() for v in adapters) / 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--overwrite', action='store_true', help="go on where others' files are in the demo's folders")
    start_over(parser.parse_args(argv).overwrite)
    with noting_files():
        gain = run_all()
    if gain < MIN_GAIN:
        sys.exit(f'demo: LoRA gained {gain:.1f} points of mIoU, less than the {MIN_GAIN:.0f} expected.')


def run_all() -> float:
    """Run the six steps and print what came of them; the gain in points of mIoU."""
    start = time.time()
    base, lora = WORK_DIRS / BASE / 'iter_600.pth', WORK_DIRS / LORA / 'iter_200.pth'
    run('1/6 Draw street scenes by day and at dusk', 'tools/make_street_scenes.py', SCENES, '--train', 96, '--val', 24)
    run('2/6 Train a small model by day', 'tools/train.py', f'configs/{BASE}.py')
    before = evaluate('3/6 Evaluate it at dusk', BASE, base, 'dusk')
    run('4/6 Adapt it to dusk with LoRA', 'tools/train.py', f'configs/{LORA}.py')
    after = evaluate('5/6 Evaluate it at dusk again', LORA, lora, 'dusk')
    print('\n=== 6/6 Draw the predictions', flush=True)
    by_day, adapted = (ROOT / WORK_DIRS / f'{name}_on_dusk' / 'predictions' for name in (BASE, LORA))
    draw(by_day, adapted, ROOT / PICTURE)

    count, size = adapter_size(ROOT / lora)
    print(f'\nmIoU at dusk before LoRA  {before:5.2f} %')
    print(f'mIoU at dusk after LoRA   {after:5.2f} %')
    print(f'adapters                  {count:,} parameters, {size:,.0f} kB')
    print(f'picture                   {PICTURE}')
    print(f'log                       {LOG}')
    print(f'time                      {time.time() - start:.0f} s')
    return after - before
