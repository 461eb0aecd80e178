"""A Python whose processes have PyTorch and the toolbox's libraries imported when they begin: 0.2 s instead of 4.

:func:`start` starts a server that imports them, nothing of this repository and nothing of mmseg, and forks itself for each
command. A command is a process of its own as any other: its arguments, folder, environment, streams, exit status and the
signals it gets or dies of are those of the ``python`` that asked for it, which is this file too, as a client.
"""

import json
import os
import random
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable

IMPORTED = ['cv2', 'scipy.optimize', 'torch', 'mmcv', 'mmengine.runner', 'mmengine.visualization', 'peft', 'transformers']
LENGTH = 8  # bytes before a request, which tell its length
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(folder: str) -> Callable[[], None]:
    """Start a server, and write the ``python`` that asks it into a folder; what is returned ends it, as our end does."""
    import subprocess
    from pathlib import Path

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{folder}/socket')
    listener.listen(32)
    alive, held = os.pipe()  # closed when this process is gone
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    fds = (listener.fileno(), alive)
    command = [sys.executable, __file__, 'serve', *map(str, fds)]
    server = subprocess.Popen(command, env={**env, 'MPLBACKEND': 'agg'}, stdin=subprocess.DEVNULL, pass_fds=fds)
    os.close(alive)
    listener.close()
    python = Path(folder) / 'python'
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}/socket" "$@"\n')
    python.chmod(0o755)

    def end() -> None:
        os.close(held)
        server.wait()

    return end


# ---------------------------------------------------------------------------------------------------------- the server
def serve(listener: socket.socket, alive: int) -> None:
    """Fork for each request; returns only in a process that is to run a command, when it has run."""
    import atexit
    import gc
    import importlib
    from contextlib import suppress

    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    atexit.register(gc.unfreeze)  # nanobind's packages print what is left at the end, with Python 3.13
    folder = os.path.dirname(listener.getsockname())
    while True:
        ready, _, _ = select.select([listener, alive], [], [])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # one that has ended
        if alive in ready:
            return
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            os.close(alive)
            return watch(connection, f'{folder}/python')
        connection.close()


def watch(connection: socket.socket, python: str) -> None:
    """Start a request's command, pass signals on to it, and send its status; returns in the command's own process."""
    header, fds, _, _ = socket.recv_fds(connection, LENGTH, 3)
    with connection.makefile('rb') as file:
        request = json.loads(file.read(int.from_bytes(header, 'big')))
    command = os.fork()
    if not command:
        connection.close()
        return become(fds, python, **request)
    for fd in fds:
        os.close(fd)
    ended = os.pidfd_open(command)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            break
        sent = connection.recv(1)
        os.kill(command, sent[0] if sent else signal.SIGKILL)
        if not sent:
            break
    _, status = os.waitpid(command, 0)
    try:
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, 'big', signed=True))
    finally:
        os._exit(0)


def become(fds: list[int], python: str, argv: list[str], cwd: str, env: dict[str, str]) -> None:
    """Run what a ``python`` with these arguments would, and return as it ends."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(cwd)
    for name in [name for name in sys.modules if name.partition('.')[0] == 'huggingface_hub']:
        if any(env.get(key) != os.environ.get(key) for key in {*env, *os.environ} if key.startswith('HF_')):
            del sys.modules[name]  # it reads its settings when it is imported
    os.environ.clear()
    os.environ.update(env)
    import numpy

    random.seed()
    numpy.random.seed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=os.isatty(stream.fileno()), write_through=argv[0] == '-u')
    sys.executable = python  # what it starts in its turn is warm too
    argv = argv[argv[0] == '-u' :]
    own = {'-c': '', '-m': cwd}.get(argv[0], os.path.dirname(os.path.realpath(argv[0])))
    sys.path[0] = own  # in the place of this file's folder
    sys.path[1:1] = [path for path in env.get('PYTHONPATH', '').split(os.pathsep) if path]
    sys.argv = argv[1:] if argv[0] == '-m' else argv
    if argv[0] == '-c':
        sys.argv = ['-c', *argv[2:]]
        exec(compile(argv[1], '<string>', 'exec'), {'__name__': '__main__', '__builtins__': __builtins__})
    elif argv[0] == '-m':
        runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name='__main__')


# ---------------------------------------------------------------------------------------------------------- the client
def ask(path: str, argv: list[str]) -> None:
    """Have a command run, and end as it ends."""
    if not argv or (argv[0].startswith('-') and argv[0] not in ('-c', '-m', '-u')):
        os.execv(sys.executable, [sys.executable, *argv])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = json.dumps(dict(argv=argv, cwd=os.getcwd(), env=dict(os.environ))).encode()
    socket.send_fds(connection, [len(request).to_bytes(LENGTH, 'big')], [0, 1, 2])
    connection.sendall(request)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
    status = int.from_bytes(connection.recv(4), 'big', signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == '__main__':
    if sys.argv[1] == 'serve':
        serve(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
    else:
        ask(sys.argv[1], sys.argv[2:])
