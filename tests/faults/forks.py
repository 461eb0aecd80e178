"""Work in forked processes: what takes long to import is there already, and whatever becomes of a process is known."""

import os
import pickle
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class End:
    """What became of a process.

    Attributes:
        value: What the work returned.
        error: The exception that it raised: type, the names of the types it is one of, message and traceback.
        signal: That ended it.
        hung: Whether it had not ended in time.
    """

    value: Any = None
    error: tuple[str, tuple[str, ...], str, str] | None = None
    signal: int | None = None
    hung: bool = False


def run(work: Callable[[], Any], log: Path, timeout: float = 120, kill_after: float | None = None) -> End:
    """Call ``work`` in a forked process, which is killed after ``kill_after`` seconds if that is given.

    Args:
        work: Returns what can be pickled. No autograd may have run in this process: its threads do not survive a fork.
        log: Takes all output.
        timeout: Seconds until the process counts as hung.
        kill_after: Seconds until it is killed on purpose.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        _child(work, writer, log)
    os.close(writer)
    given = timeout if kill_after is None else kill_after
    data, late = _read(reader, time.monotonic() + given)
    if late:
        os.kill(pid, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if late:
        return End(signal=signal.SIGKILL, hung=kill_after is None)
    if os.WIFSIGNALED(status):
        return End(signal=os.WTERMSIG(status))
    return pickle.loads(data) if data else End(error=('SystemExit', ('BaseException',), 'ended without a result', ''))


def _child(work: Callable[[], Any], writer: int, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        end = End(value=work())
    except BaseException as error:  # KeyboardInterrupt and SystemExit are ends too
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        end = End(error=(type(error).__name__, kinds, str(error), traceback.format_exc()))
    with os.fdopen(writer, 'wb') as file:
        file.write(pickle.dumps(end))
    sys.stdout.flush()
    os._exit(0)


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """All that comes through a pipe, and whether the deadline was over first."""
    data = b''
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            part = os.read(reader, 1 << 20)
            if not part:
                return data, False
            data += part
    return data, True


def trouble_of(end: End) -> str:
    """Why a process did not come to its end; empty if it did."""
    if end.error:
        return f'{end.error[0]}: {end.error[2][-400:]}'
    return f'it ended with signal {end.signal}{", having hung" if end.hung else ""}' if end.signal else ''
