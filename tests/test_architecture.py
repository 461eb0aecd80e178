"""docs/architecture.md is true: imports between packages are those of its table, and nothing imports in a circle."""

import ast
import graphlib
import re
from collections import defaultdict
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / 'mmseg_eomt'
PAGE = ROOT / 'docs' / 'architecture.md'
TOP = 'mmseg_eomt'


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob('*.py')) if '.mim' not in path.parts}


def imported(path: Path) -> set[str]:
    """The modules of the plugin that a file imports, also inside functions and for type hints."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = {f'{node.module}.{alias.name}' for alias in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return {name for name in found if name.split('.')[0] == TOP and name in MODULES}


def room_of(module: str) -> str:
    """The package of a module, or the module itself where it is at the top."""
    return module.split('.')[1] if '.' in module else TOP


def rooms() -> dict[str, set[str]]:
    """Each room and those that its files import."""
    arrows = defaultdict(set)
    for module, path in MODULES.items():
        arrows[room_of(module)] |= {room_of(name) for name in imported(path)} - {room_of(module)}
    return dict(arrows)


def table() -> dict[str, set[str]]:
    """Each room and what it imports, as the page says."""
    rows = re.findall(r'^\| `(\w+)` \|[^|]*\| ([^|]*) \|$', PAGE.read_text(encoding='utf-8'), re.M)
    return {room: set(re.findall(r'`(\w+)`', arrows)) for room, arrows in rows}


def test_the_page_names_every_room_and_every_arrow():
    assert table() == rooms()


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """The names along a circle, the first one again at the end; none if there is no circle."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_package_and_no_file_imports_in_a_circle():
    files = {module: imported(path) - {module} for module, path in MODULES.items() if path.name != '__init__.py'}
    assert circle_in(rooms()) == []
    assert circle_in(files) == []


def test_a_circle_would_be_found():
    assert {'models', 'weights'} <= set(circle_in(rooms() | {'models': {'weights'}}))


def test_patches_stand_in_one_package():
    """Nothing outside it replaces an attribute of torch, mmengine, mmcv or mmseg."""
    foreign = ('torch', 'mmengine', 'mmcv', 'mmseg')
    for module, path in MODULES.items():
        if room_of(module) == 'patches':
            continue
        tree = ast.parse(path.read_text(encoding='utf-8'))
        names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in foreign
            for alias in node.names
        } | set(foreign)
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                owner = target.value if isinstance(target, ast.Attribute) else None
                while isinstance(owner, ast.Attribute):
                    owner = owner.value
                assert not (isinstance(owner, ast.Name) and owner.id in names), (
                    f'{path}:{node.lineno} replaces {ast.unparse(target)}'
                )
