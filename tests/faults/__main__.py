"""Kills runs and damages files, and counts what comes of it; the status is 1 where something is silently wrong or lost.

python tests/faults                              all of it
python tests/faults kill --cases 60 --seed 0     runs that are killed
python tests/faults damage --cases 1200          files that are damaged
python tests/faults damage --seed 0 --case 17    one case again, its files kept
"""

import argparse
import functools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def main() -> None:
    """Command line."""
    args = parse_args()
    os.environ['OMP_NUM_THREADS'] = '1'  # sums in one order, whoever else computes
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    import torch

    torch.set_num_threads(1)
    failed = False
    for what in [args.what] if args.what else ['kill', 'damage']:
        start = time.monotonic()
        place = Path(tempfile.mkdtemp(prefix=f'faults-{what}-'))
        bad = RIGS[what](args, place)
        print(f'{time.monotonic() - start:.0f} s, seed {args.seed}')
        if bad or args.case is not None:
            print(f'Files are in {place}.')
        else:
            shutil.rmtree(place)
        failed |= bad
    sys.exit(failed)


def parse_args() -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', choices=list(RIGS), help='one of the two (both)')
    parser.add_argument('--cases', type=int, help='how many (72 runs, 1200 files)')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn (0)')
    parser.add_argument('--case', type=int, help='the number of one case, to see it again')
    parser.add_argument('--workers', type=int, default=2, help='processes at a time (2)')
    return parser.parse_args()


def kill(args: argparse.Namespace, place: Path) -> bool:
    """Kill runs; whether something must not be."""
    from faults import kill

    numbers = [args.case] if args.case is not None else range(args.cases or 72)
    kill.prepare(place)
    scenarios = sorted(set(map(kill.scenario_of, numbers)))
    references = dict(each(functools.partial(kill.refer, place=place), scenarios, args.workers))
    work = functools.partial(kill.kill_and_resume, seed=args.seed, place=place, references=references)
    results = each(work, numbers, args.workers)
    print(kill.table(results))
    return any(map(kill.violations, results))


def damage(args: argparse.Namespace, place: Path) -> bool:
    """Damage files; whether something must not be."""
    from faults import damage, outcomes, pictures
    from faults.artefacts import RUNS, Store

    store = Store(place / 'store')
    store.prepare()
    each(store.train, [name for name in RUNS if name != 'plain'], args.workers)
    store.finish()
    numbers = [args.case] if args.case is not None else range(args.cases or 1200)
    damage.EXPECTED.update(
        each(functools.partial(damage.expect, store=store), damage.pairs(numbers, args.seed), args.workers)
    )
    pictures.EXPECTED.update(each(functools.partial(pictures.expect, store=store), pictures.DOORS, args.workers))
    failed = [f'The whole {name} fails: {value["fails"]}' for name, value in damage.EXPECTED.items() if 'fails' in value]
    failed += [
        f'Whole pictures fail at {name}: {value["fails"]}' for name, value in pictures.EXPECTED.items() if 'fails' in value
    ]
    work = functools.partial(damage_one, seed=args.seed, store=store, place=place, keep=args.case is not None)
    found = each(work, numbers, args.workers)
    print(outcomes.table(found), *failed, sep='\n')
    return bool(failed) or any(outcome.verdict in outcomes.BAD for outcome in found)


def damage_one(number: int, **options: Any) -> Any:
    """One case: every fourth is of pictures."""
    from faults import damage, pictures

    return (damage if number % 4 else pictures).run_case(number, **options)


def each(work: Callable, items: Iterable, workers: int) -> list:
    """Results of all cases, in order; the processes are forked from this one."""
    with multiprocessing.get_context('fork').Pool(workers) as pool:
        return pool.map(work, items, chunksize=1)


RIGS = dict(kill=kill, damage=damage)

if __name__ == '__main__':
    main()
