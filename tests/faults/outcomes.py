"""What came of a damaged file, and whether that may be."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults.forks import End

REFUSED, RIGHT = 'refused, and named', 'works, with the right outputs'
OTHER, BARE, HUNG, EXECUTED = 'silently other', 'bare exceptions', 'hangs', 'executed'
WRONGLY = 'refused though harmless'
BAD = (OTHER, BARE, HUNG, EXECUTED, WRONGLY)
OURS = {'ValueError', 'OSError', 'RuntimeError', 'SystemExit'}
ROUNDING = 0.1  # of the largest score, of weights of 16 bits


@dataclass(frozen=True)
class Outcome:
    """Of one case.

    Attributes:
        number: Of the case.
        told: What was damaged, how, and handed over where.
        verdict: One of the words above.
        detail: The error, for one that must not be.
    """

    number: int
    told: str
    verdict: str
    detail: str = ''


def judge(end: End, name: str, canary: Path, expected: list[dict[str, Any]], harmless: bool, rounded: bool) -> tuple:
    """Verdict and detail.

    Args:
        end: What became of the process.
        name: Of the damaged file, which has to be in the sentence of an error.
        canary: A file that is there if code was run.
        expected: Outputs of the undamaged file, any of which are right.
        harmless: Whether the file is to work.
        rounded: Whether its numbers have fewer bits.
    """
    if canary.exists():
        return EXECUTED, str(canary)
    if end.hung:
        return HUNG, ''
    if end.signal:
        return BARE, f'signal {end.signal}'
    if end.error is None:
        return (RIGHT, '') if any(same(end.value, outputs, rounded) for outputs in expected) else (OTHER, '')
    kind, kinds, message, trace = end.error
    if OURS.isdisjoint(kinds) or name not in message or 'weights_only' in message:
        return BARE, f'{kind}: {message[:300]!r} at {last_place(trace)}'
    return (WRONGLY, f'{kind}: {message[:300]}') if harmless else (REFUSED, '')


def last_place(trace: str) -> str:
    """File and line of the plugin that a traceback was last in; its commands only pass errors on."""
    places = re.findall(r'File "[^"]*/(mmseg_eomt/(?!commands/)[^"]+)", line (\d+)', trace)
    return ':'.join(places[-1]) if places else 'no line of the plugin'


def same(given: dict[str, Any], expected: dict[str, Any], rounded: bool = False) -> bool:
    """Whether outputs are the expected ones; to the last bit, unless they were rounded."""
    if given.keys() != expected.keys():
        return False
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor):
            if value != given[name] and not rounded:
                return False
        elif rounded and value.is_floating_point():
            if float((value - given[name]).abs().max()) > ROUNDING * float(value.abs().max()):
                return False
        elif not rounded and not torch.equal(value, given[name]):
            return False
    return True


def table(outcomes: list[Outcome]) -> str:
    """The counts, and each violation."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    lines = ['', '| damage | |', '|---|---|', f'| damaged inputs | {len(outcomes)} |']
    lines += [f'| {verdict} | {counts[verdict]} |' for verdict in (REFUSED, RIGHT, *BAD)]
    for outcome in outcomes:
        if outcome.verdict in BAD:
            lines.append(f'case {outcome.number}, {outcome.verdict.upper()}: {outcome.told}\n    {outcome.detail}')
    return '\n'.join(lines)
