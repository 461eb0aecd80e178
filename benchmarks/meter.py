"""Time and peak memory of calls that take turns."""

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

Calls = dict[str, Callable[[], object]]


class Meter:
    """Takes turns, and the times and peaks of what it is given."""

    def __init__(self, device: str, rounds: int) -> None:
        self.device, self.rounds = device, rounds

    def __call__(self, calls: Calls) -> dict[str, dict[str, float]]:
        """Median seconds and MB of new pages, and peak MB of each call."""
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        pages: dict[str, list[int]] = {name: [] for name in calls}
        for _ in range(self.rounds + 1):
            for name, call in calls.items():
                self._wait()
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                start = time.perf_counter()
                call()
                self._wait()
                seconds[name].append(time.perf_counter() - start)
                pages[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
        return {
            name: dict(
                seconds=round(statistics.median(seconds[name][1:]), 4),
                new_pages_mb=round(statistics.median(pages[name][1:]) * resource.getpagesize() / 2**20),
                peak_mb=self._peak(call),
            )
            for name, call in calls.items()
        }

    def _wait(self) -> None:
        if self.device == 'cuda':
            torch.cuda.synchronize()

    def _peak(self, call: Callable[[], object]) -> int | None:
        gc.collect()
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return round((torch.cuda.max_memory_allocated() - before) / 2**20)
        if not Path('/proc/self/clear_refs').exists():
            call()
            return None
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the highest memory counts from here
        before = _memory('VmRSS')
        call()
        return round((_memory('VmHWM') - before) / 1024)


def _memory(field: str) -> int:
    """Of this process, in kB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))
