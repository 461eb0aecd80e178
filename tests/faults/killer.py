"""Ends a process at a chosen moment of its work on files or of its evaluation, as a power cut would.

Python tells an audit hook of each file that it opens, renames or deletes, before it does so; nothing is patched. Inside a
write, the kernel ends the process: at a limit of the file's size.
"""

import os
import re
import resource
import signal
import sys
import zipfile
from pathlib import Path

from mmengine.hooks import Hook

CHANGES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate')


class FileWatch:
    """Notes what this process does to the files of a folder, and ends it at one of these moments.

    Args:
        folder: Whose files.
        at: Number of the moment to be killed at. Default: none.
        limit: Bytes after which a write that follows the moment ends the process; the next moment does so at the latest.
            Default: it ends at the moment itself.
    """

    def __init__(self, folder: Path, at: int | None = None, limit: int | None = None) -> None:
        self.folder, self.at, self.limit = str(folder), at, limit
        self.moments: list[str] = []  # kinds of files
        self._armed = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if event == 'open':
            path, _, flags = args
            if not isinstance(path, (str, bytes, os.PathLike)) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = args[1] if event == 'os.rename' else args[0]
        else:
            return
        path = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else ''
        if not path.startswith(self.folder):
            return
        if self._armed:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(self.moments) == self.at:
            if self.limit is None:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            self._armed = True
        self.moments.append(kind_of(path))
        if event == 'os.remove' and path.endswith('.pth') and zipfile.is_zipfile(path):
            note_deleted(Path(path))


def kind_of(path: str) -> str:
    """Which of a run's files a path is, or becomes."""
    for kind in ('last_checkpoint', 'adapters.txt', 'adapters', '.pth', 'data_checked'):
        if kind in path:
            return kind
    return 'log'


def note_deleted(checkpoint: Path) -> None:
    """Remember a whole checkpoint that the run deletes, beside its work directory."""
    with open(f'{checkpoint.parent}-deleted', 'a') as file:
        file.write(f'{number_of(checkpoint)}\n')


def number_of(checkpoint: Path) -> int:
    """The iteration in a checkpoint's name."""
    return int(re.search(r'\d+', checkpoint.stem)[0])


class EvaluationWatch(Hook):
    """Counts the moments of a run's evaluations, and ends the process at one of them."""

    priority = 'LOWEST'

    def __init__(self, at: int | None = None) -> None:
        self.at, self.seen = at, 0

    def _moment(self, *_, **__) -> None:
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1

    before_val = before_val_iter = after_val_iter = after_val_epoch = after_val = _moment
