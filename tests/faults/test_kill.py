"""A share of the runs that ``make faults`` kills (docs/reliability.md)."""

import sys

import pytest
from conftest import run_tool


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_end_and_leave_no_half_written_file():
    done = run_tool(sys.executable, 'tests/faults', 'kill', '--cases', 6, check=False)
    assert not done.returncode, done.stdout[-4000:]
