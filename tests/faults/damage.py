"""Damaged files of weights, handed over at every door."""

import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults import damage_bytes, damage_content, damage_folders, forks
from faults.artefacts import Store, other_base
from faults.doors import ADAPTERS, CONVERTERS, DOORS, MODELS, Outputs
from faults.outcomes import OTHER, RIGHT, Outcome, judge

TIMEOUT = 60
BEFORE = 'resume from the checkpoint before'
EXPECTED: dict[tuple[str, str], Outputs] = {}  # outputs of the whole files, by file and door
SLOW = ('test', 'load_from', 'resume', 'init_cfg')  # which build a Runner
FOLDERS = {'adapter': damage_folders.ADAPTERS, 'shards': damage_folders.SHARDS}
ROUNDABLE = ('init_model', 'load_model')


@dataclass(frozen=True)
class Case:
    """One damage to one file, handed over at one door."""

    artefact: str
    door: str
    kind: Any
    harmless: bool
    rounded: bool

    @property
    def told(self) -> str:
        """In words."""
        return f'{self.artefact} at {self.door}: {getattr(self.kind, "__name__", self.kind)} ({self.kind.__doc__ or ""})'


def pairs(numbers: Iterable[int], seed: int) -> list[tuple[str, str]]:
    """The files and doors of some cases."""
    cases = [draw_case(random.Random(f'{seed}-{number}')) for number in numbers]
    found = {(case.artefact, case.door) for case in cases}
    return sorted(found | {(artefact, BEFORE) for artefact, door in found if door == 'resume'})


def expect(pair: tuple[str, str], store: Store) -> tuple[tuple[str, str], Outputs]:
    """Outputs of a whole file at a door; ``fails`` where it has none, which must not be."""
    artefact, door = pair
    work = store.place / 'expected' / f'{artefact}-{door}'.replace(' ', '_')
    work.mkdir(parents=True)
    path = _placed(store, artefact, 'resume' if door == BEFORE else door, work)
    if door == BEFORE:
        path.unlink()
        door = 'resume'
    end = forks.run(lambda: DOORS[artefact][door](store, path, work), work / 'log.txt')
    if end.error or end.signal:
        return pair, dict(fails=forks.trouble_of(end))
    return pair, end.value


def _placed(store: Store, artefact: str, door: str, work: Path, number: int = 0) -> Path:
    """A copy to be damaged, of a name of its own."""
    source = store.place / artefact
    if door == 'resume':
        folder = work / source.stem
        folder.mkdir()
        for name in ('iter_2.pth', 'iter_4.pth'):
            shutil.copy(store.place / 'runs' / source.stem / name, folder)
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
        return folder / 'iter_4.pth'
    path = work / f'{source.stem}_{number}{source.suffix}'
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    return path


def draw_case(draw: random.Random) -> Case:
    """A file, a door and a damage."""
    artefact = draw.choice(
        [name for name in DOORS for _ in range(2 if name in ('slim.pth', 'plain.pth') else 1)] + ['adapter'] * 3
    )
    doors = list(DOORS[artefact])
    door = draw.choice([door for door in doors for _ in range(1 if door in SLOW and len(doors) > 2 else 3)])
    fate = draw.random()
    if fate < 0.06:
        return Case(artefact, door, draw.choice(list(_harmless(artefact, door))), True, False)
    if fate < 0.09 and door in ROUNDABLE and artefact not in FOLDERS:
        return Case(artefact, door, draw.choice(damage_content.ROUNDED), True, True)
    return Case(artefact, door, draw.choice(list(_kinds(artefact, door))), False, False)


def _harmless(artefact: str, door: str) -> Iterator[Any]:
    if artefact == 'adapter':
        yield from damage_folders.HARMLESS
    elif artefact == 'shards':
        yield damage_folders.further_file
    else:
        yield from damage_bytes.HARMLESS
        if not artefact.endswith('.safetensors'):
            yield from damage_content.HARMLESS
            if door in (*MODELS, 'load_from', 'init_cfg'):
                yield damage_content.float64


def _kinds(artefact: str, door: str) -> Iterator[Any]:
    """Damages that must not pass, with those repeated that are many."""
    if artefact in FOLDERS:
        yield from FOLDERS[artefact]
        if artefact == 'adapter':
            yield damage_folders.code
        return
    yield from damage_bytes.LOST
    if artefact.endswith('.safetensors'):  # of others, without a digest: bytes of the tensors cannot be checked
        yield from [damage_bytes.flip_at_start] * 5
        return
    yield from damage_bytes.WITHIN
    yield from damage_content.TENSORS
    yield from damage_content.STRUCTURE
    yield damage_content.code
    own = not artefact.startswith(('vit', 'public'))
    if own:
        yield from damage_content.META * 2
    if artefact in ('slim.pth', 'slim_averaged.pth', 'with_base.pth'):
        yield from damage_content.NOTES * 3
    if door == 'resume':
        yield from damage_content.OPTIMIZERS * 6
    if door == 'base under adapters':
        yield from [_other_base] * 5
    if own and door in (*MODELS, *ADAPTERS, *CONVERTERS):
        yield _swapped


def _other_base(path: Path, draw: random.Random, store: Store) -> None:
    """A base of the same shapes that was trained otherwise."""
    shutil.copy(other_base(store.place), path)


def _swapped(path: Path, draw: random.Random, store: Store) -> None:
    """A ViT in the place of a model."""
    shutil.copy(store.place / 'vit.pth', path)


def inflict(case: Case, path: Path, draw: random.Random, store: Store, canary: Path) -> None:
    """Damage the copy."""
    kind = case.kind
    if kind in (damage_folders.code,):
        kind(path, draw, canary)
    elif kind in (_other_base, _swapped):
        kind(path, draw, store)
    elif getattr(kind, '__module__', '') == damage_content.__name__:
        content = torch.load(path, map_location='cpu', weights_only=True)
        kind(content, draw, *([canary] if kind is damage_content.code else []))
        torch.save(content, path)
    else:
        kind(path, draw)


def run_case(number: int, seed: int, store: Store, place: Path, keep: bool = False) -> Outcome:
    """Draw, damage, hand over, judge."""
    draw = random.Random(f'{seed}-{number}')
    case = draw_case(draw)
    work = place / f'case_{number}'
    work.mkdir(parents=True)
    path, canary = _placed(store, case.artefact, case.door, work, number), work / 'canary'

    def hand_over() -> Outputs:
        return DOORS[case.artefact][case.door](store, path, work)

    inflict(case, path, draw, store, canary)
    end = forks.run(hand_over, work / 'log.txt', TIMEOUT)
    verdict, detail = judge(end, path.name, canary, _right(case), case.harmless, case.rounded)
    if verdict == RIGHT and case.door == 'resume' and end.value['iter'] < 4 and not _says(path, work / 'log.txt'):
        verdict, detail = OTHER, f'{path.name} is skipped without a word'
    if not keep:
        shutil.rmtree(work, ignore_errors=True)
    return Outcome(number, case.told, verdict, detail)


def _says(path: Path, log: Path) -> bool:
    """Whether a run says that it does not go on from its last checkpoint; one that is not there is no loss."""
    return not path.exists() or path.name in log.read_text()


def _right(case: Case) -> list[Outputs]:
    expected = [EXPECTED[case.artefact, case.door]]
    if case.door == 'resume':  # or the checkpoint before, where the last one cannot be read
        expected.append(EXPECTED[case.artefact, BEFORE])
    return expected
