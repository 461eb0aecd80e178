"""Runs that are killed, resumed, and compared with the run that was never stopped."""

import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT, make_config
from mmengine.runner import Runner

from faults import forks, runs
from faults.artefacts import make_scenes

WAYS = ('files', 'time', 'files', 'evaluation', 'files', 'time', 'command line')


@dataclass
class Result:
    """What became of one run.

    Attributes:
        number: Of the case.
        told: The scenario and how it was killed.
        kills: How often.
        lost: Why its work is lost.
        inexact: What differs at its end from the uninterrupted run.
        half: Files of final names that were half written.
    """

    number: int
    told: str
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    inexact: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)


def prepare(place: Path) -> None:
    """Make data, and a base."""
    make_scenes(place / 'scenes')
    # its iteration is past the end of the runs, which must not be taken for the one to go on from
    base = make_config(place / 'scenes', place / 'base', max_iters=runs.MAX_ITERS + 2)
    _finish(lambda: Runner.from_cfg(base).train() and None, place / 'base.log')
    (place / 'base' / f'iter_{runs.MAX_ITERS + 2}.pth').rename(place / 'base.pth')


def scenario_of(number: int) -> str:
    """What is trained in a case."""
    return list(runs.SCENARIOS)[number % len(runs.SCENARIOS)]


def refer(scenario: str, place: Path) -> tuple[str, dict]:
    """The uninterrupted run of a scenario, with its moments and its duration."""
    start = time.monotonic()
    work_dir = place / f'reference_{list(runs.SCENARIOS).index(scenario)}' / 'run'
    work_dir.parent.mkdir()
    config = runs.config_of(scenario, place / 'scenes', place / 'base.pth', work_dir, resume=False)
    found = _finish(lambda: runs.train(config), work_dir.parent / 'log.txt')
    return scenario, dict(found, work_dir=work_dir, seconds=time.monotonic() - start)


def _finish(work, log: Path):
    end = forks.run(work, log)
    if end.error or end.signal:
        raise RuntimeError(f'An uninterrupted run failed, see {log}: {end}')
    return end.value


def kill_and_resume(number: int, seed: int, place: Path, references: dict[str, dict]) -> Result:
    """One case: kill a run once or twice, resume it to its end, compare."""
    draw = random.Random(f'{seed}-{number}')
    scenario = scenario_of(number)
    reference = references[scenario]
    folder = place / f'case_{number}'
    folder.mkdir()
    work_dir = folder / 'run'
    config = runs.config_of(scenario, place / 'scenes', place / 'base.pth', work_dir, resume=draw.random() < 0.5)
    result = Result(number, scenario)
    ways = [WAYS[number % len(WAYS)]]
    if number % 4 == 3:  # and once more while it is resumed
        ways.append(draw.choice(('files', 'time', 'evaluation')))
    by_command = ways[0] == 'command line'
    for way in ways:
        told, end = _kill(way, draw, config, reference, folder)
        result.told += f'; {told}' + ('' if end.signal else ', ended before')
        if end.error or end.hung:
            result.lost.append(forks.trouble_of(end))
            return result
        result.kills += bool(end.signal)
        result.half += runs.half_written(work_dir, reference['work_dir'])
        config.resume = True
    whole = [number for number, path in runs.checkpoints(work_dir).items() if runs.is_intact(path)]
    last = max([*whole, runs.last_number(work_dir, 'deleted') or 0])
    trouble, start = _resume(config, folder, by_command)
    if trouble:
        result.lost.append(trouble)
        return result
    if start is not None and start < last:
        result.lost.append(f'it restarts at iteration {start}, though its checkpoint of iteration {last} was whole')
    final = work_dir / f'iter_{runs.MAX_ITERS}.pth'
    result.inexact += (
        runs.different(final, reference['work_dir'] / final.name) if final.is_file() else ['no last checkpoint']
    )
    result.half += runs.half_written(work_dir, reference['work_dir'])
    absent = [path for path in _written(reference['work_dir']) if not (work_dir / path).exists()]
    result.inexact += [f'{path} is missing at the end' for path in absent]
    return result


def _written(work_dir: Path) -> list[Path]:
    adapters = [path.relative_to(work_dir) for path in (work_dir / 'adapters').glob('*/*')]
    return [*adapters, *(path.relative_to(work_dir) for path in runs.checkpoints(work_dir).values())]


def _kill(way: str, draw: random.Random, config, reference: dict, folder: Path) -> tuple[str, forks.End]:
    """Start or go on, be killed; how that was, and what became of the process."""
    if way == 'command line':
        return _kill_command(draw, config, reference, folder)
    watch, evaluation, after = None, None, None
    if way == 'files':
        kind = draw.choice(sorted(set(reference['moments'])))
        at = draw.choice([i for i, moment in enumerate(reference['moments']) if moment == kind])
        size = max(path.stat().st_size for path in runs.checkpoints(reference['work_dir']).values())
        limit = draw.choice([None, draw.randrange(size if kind == '.pth' else 4000)])
        watch, told = dict(at=at, limit=limit), f'at file moment {at} ({kind}), ' + (f'{limit} bytes' if limit else 'before')
    elif way == 'evaluation':
        evaluation = draw.randrange(reference['evaluations'])
        told = f'at evaluation moment {evaluation}'
    else:
        after = draw.uniform(0.2, 1) * reference['seconds']
        told = f'after {after:.2f} s'
    return told, forks.run(lambda: runs.train(config, watch, evaluation), folder / 'log.txt', kill_after=after)


def _command(config, folder: Path) -> subprocess.Popen:
    file = folder / 'config.py'
    config.dump(file)
    with (folder / 'log.txt').open('ab') as log:
        command = [sys.executable, 'tools/train.py', str(file), *['--resume'] * config.resume]
        return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=log, stderr=log)


def _kill_command(draw: random.Random, config, reference: dict, folder: Path) -> tuple[str, forks.End]:
    """Through ``tools/train.py``, from outside."""
    after = draw.random() * reference['seconds']
    process = _command(config, folder)
    while process.poll() is None and not Path(config.work_dir).exists():  # packages are imported until then
        time.sleep(0.02)
    time.sleep(after)
    process.kill()
    status = process.wait()
    failed = ('the command', (), f'status {status}', '') if status > 0 else None
    return f'the command after {after:.2f} s', forks.End(error=failed, signal=-status if status < 0 else None)


def _resume(config, folder: Path, by_command: bool) -> tuple[str, int | None]:
    """Go on to the end: what went wrong, and the iteration where it started."""
    work_dir, log = Path(config.work_dir), folder / 'log.txt'
    if not by_command:
        Path(f'{work_dir}-starts').unlink(missing_ok=True)
        end = forks.run(lambda: runs.train(config), log)
        return forks.trouble_of(end), runs.last_number(work_dir, 'starts')
    before = log.stat().st_size
    process = _command(config, folder)
    status = process.wait(timeout=300)
    text = log.read_bytes()[before:].decode(errors='replace')
    found = re.search(r'resumed epoch: \d+, iter: (\d+)', text)
    return f'status {status}: {text[-400:]}' if status else '', int(found[1]) if found else 0


def table(results: list[Result]) -> str:
    """The counts, and each violation with how to see it again."""
    rows = {
        'runs that were killed': sum(bool(result.kills) for result in results),
        'kills': sum(result.kills for result in results),
        'lost': sum(bool(result.lost) for result in results),
        'inexact': sum(bool(result.inexact) for result in results),
        'half-written files accepted': sum(bool(result.half) for result in results),
    }
    lines = ['', '| kill | |', '|---|---|', *(f'| {name} | {count} |' for name, count in rows.items())]
    for result in filter(violations, results):
        lines.append(f'case {result.number} ({result.told}): {"; ".join(violations(result))}')
    return '\n'.join(lines)


def violations(result: Result) -> list[str]:
    """What must not be."""
    return list(dict.fromkeys(result.lost + result.inexact + result.half))
