"""Runs a command of the package, which is found beside this folder where it is not installed."""

import sys
from pathlib import Path


def run(name: str) -> None:
    """Run a command by its name in :mod:`mmseg_eomt.commands.cli`; without what it needs, end with what to install."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from mmseg_eomt.commands.cli import run_command
    except ImportError as error:
        sys.exit(str(error))
    run_command(name)
