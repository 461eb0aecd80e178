"""What the demos share: they run the commands that a user would, show what matters, and delete only their own files."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmseg_eomt.configs import config_folder
from mmseg_eomt.whole import whole_file

WORK_DIRS = Path('work_dirs')
SHOWN = re.compile(r'scenes in|Iter\(|Adapted model|^  \w.*(\d|% of all parameters train)$|matched layers|estimated sizes')
GRACE = 2 * 10**9  # nanoseconds around the times that are noted each second
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class Demo:
    """A demo: where it writes, what it may delete, and how it runs commands.

    Beside its folders it writes ``work_dirs/<name>.png``, its picture, ``work_dirs/<name>.log``, all that was printed, and
    ``work_dirs/<name>.json``, sizes and times of the files that it has made. All paths are below ``root``.

    Args:
        name: Of the three files.
        scenes: Folder of its data.
        patterns: Of the files in ``scenes`` that it replaces.
        runs: Names of its work directories in ``work_dirs``.

    Attributes:
        root: The top of the repository.
    """

    def __init__(self, name: str, scenes: Path, patterns: Sequence[str], runs: Sequence[str]) -> None:
        self.root = config_folder().parent
        self.name = name
        self.scenes = scenes
        self.patterns = patterns
        self.folders = [WORK_DIRS / run for run in runs]
        self.picture, self.log, self.made = (WORK_DIRS / f'{name}.{end}' for end in ('png', 'log', 'json'))

    def main(self, argv: Sequence[str] | None, description: str | None, steps: Callable[[], str]) -> None:
        """Command line: ``steps`` runs the demo and returns what is wrong with what came of it, or nothing."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument('--overwrite', action='store_true', help="go on where others' files are in the demo's folders")
        self.start_over(parser.parse_args(argv).overwrite)
        start = time.time()
        with self.noting_files():
            wrong = steps()
            print(f'picture                   {self.picture}')
            print(f'log                       {self.log}')
            print(f'time                      {time.time() - start:.0f} s')
        if wrong:
            sys.exit(f'{self.name}: {wrong}')

    def run(self, title: str, *args: object) -> None:
        """Run a command of this repository and show what matters of its output; all of it goes to the log.

        If the command fails, its last lines are printed and the demo ends with status 1.
        """
        status, last = self.run_shown(title, [sys.executable, *map(str, args)])
        if status:
            sys.exit(f'{"".join(last)}\n{self.name}: "{title}" failed with status {status}; all output is in {self.log}.')

    def run_shown(self, title: str, command: list[str]) -> tuple[int, deque[str]]:
        """Status and last lines of a command that is run; it ends with the demo, however that ends."""
        header = f'\n=== {title}\n$ {shlex.join(["python", *command[1:]])}'
        print(header, flush=True)
        last: deque[str] = deque(maxlen=25)
        output: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        with (
            subprocess.Popen(command, cwd=self.root, preexec_fn=end_with_parent, **output) as process,
            (self.root / self.log).open('a', encoding='utf-8') as log,
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

    def evaluate(self, title: str, config: str, checkpoint: Path, work_dir: Path, *args: object) -> dict[str, float]:
        """Metrics of a checkpoint by ``tools/test.py``, with more of its arguments."""
        self.run(title, 'tools/test.py', f'configs/{config}.py', checkpoint, '--work-dir', work_dir, *args)
        (metrics,) = (self.root / work_dir).glob('*/*.json')
        return json.loads(metrics.read_text())

    def files_there(self) -> dict[str, list[int]]:
        """Size and time of each file that the demo deletes or replaces."""
        inside = [file for folder in self.folders for file in (self.root / folder).rglob('*')]
        inside += [file for pattern in self.patterns for file in (self.root / self.scenes).rglob(pattern)]
        files = sorted(file for file in (*inside, self.root / self.picture, self.root / self.log) if file.is_file())
        return {file.relative_to(self.root).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

    @contextmanager
    def noting_files(self) -> Iterator[None]:
        """Note that the files which are made meanwhile are the demo's: once it ends, on SIGTERM too.

        If it is killed, that it was running is noted: since when, and by the note's own time, until when.
        """
        self.note_files(running=time.time_ns())
        ended = threading.Event()
        clock = threading.Thread(target=self.keep_time, args=(ended,), daemon=True)
        clock.start()
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            ended.set()
            clock.join()
            self.note_files()

    def keep_time(self, ended: threading.Event) -> None:
        """Keep the note's time up to date."""
        while not ended.wait(1):
            os.utime(self.root / self.made)

    def note_files(self, **running: int) -> None:
        """Write down that the files which are there are the demo's."""
        with whole_file(self.root / self.made) as path:
            path.write_text(json.dumps(self.files_there() | running, indent=0), encoding='utf-8')

    def files_of_others(self) -> list[str]:
        """Files that the demo deletes or replaces, and that no earlier one has made as they are."""
        try:
            made = json.loads((self.root / self.made).read_text(encoding='utf-8'))
            last = (self.root / self.made).stat().st_mtime_ns + GRACE
        except (OSError, ValueError):
            made, last = {}, 0
        first = made['running'] - GRACE if 'running' in made else last + 1  # 'running' is left by a demo that was killed
        there = self.files_there()
        return [name for name, state in there.items() if made.get(name) != state and not first <= state[1] <= last]

    def start_over(self, overwrite: bool) -> None:
        """Delete what an earlier demo has made; end where that would touch others' files, unless they may be overwritten."""
        others = self.files_of_others()
        if others and not overwrite:
            more = f' and {len(others) - 1} other files' if len(others) > 1 else ''
            sys.exit(
                f'{self.name}: {others[0]}{more} would be deleted or replaced, and no earlier demo has made them so: move '
                f'them away, or give --overwrite.'
            )
        for folder in self.folders:
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for file in (self.picture, self.log):
            (self.root / file).unlink(missing_ok=True)
        (self.root / WORK_DIRS).mkdir(exist_ok=True)

    def draw(self, rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> None:
        """Write the picture: rows of pictures of one size, BGR, twice as large, with a title over each column."""
        sheet = cv2.resize(np.vstack([np.hstack(row) for row in rows]), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        sheet = cv2.copyMakeBorder(sheet, 28, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for i, title in enumerate(titles):
            place = (i * sheet.shape[1] // len(titles) + 8, 20)
            cv2.putText(sheet, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        if not cv2.imwrite(str(self.root / self.picture), sheet):
            sys.exit(f'{self.name}: {self.picture} could not be written.')


def end_with_parent() -> None:
    """Have Linux kill this process when its parent ends: a killed demo's training would write on."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
