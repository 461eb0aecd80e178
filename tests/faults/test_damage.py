"""A share of the files that ``make faults`` damages."""

import sys

import pytest
from conftest import run_tool


@pytest.mark.slow
def test_damaged_files_are_refused_by_name_or_work_as_the_whole_ones():
    done = run_tool(sys.executable, 'tests/faults', 'damage', '--cases', 32, check=False)
    assert not done.returncode, done.stdout[-4000:]
