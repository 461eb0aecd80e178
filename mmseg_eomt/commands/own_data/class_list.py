"""The options ``--classes`` and ``--ignore``: names of classes with their values, and values to ignore."""

import os
import re
from pathlib import Path

from mmseg_eomt.commands.own_data.class_mapping import Value

BETWEEN, ID = r'[\s,;:]+', r'\d+'
COLOUR = BETWEEN.join([ID] * 3)
FORMS = [
    form
    for value in (COLOUR, ID)
    for form in (rf'(?P<name>.*?\S){BETWEEN}(?P<value>{value})', rf'(?P<value>{value}){BETWEEN}(?P<name>.*\S)')
]
HEADINGS = r'(?i)((name|class)\w*\W+(r(ed)?\W+g(reen)?\W+b(lue)?|id)|id\W+(name|class)\w*)'


def classes_and_ignored(classes: str | None, ignore: list[str]) -> tuple[dict[str, Value] | None, set[Value]]:
    """Classes with their values, and values to ignore.

    Args:
        classes: Names of the ids 0, 1, … with commas between them, or the path of a text file of :func:`read_classes`. None
            for all values that occur.
        ignore: Ids, colours as ``r,g,b``, or names of classes.

    Returns:
        Value of each class, or None; and the ignored values.

    Raises:
        ValueError: If these are fewer than two classes, a name is empty or comes twice, or something reads otherwise.
    """
    named = None if classes is None else _named(classes)
    ignored: set[Value] = set()
    for text in ignore:
        if named and text in named:
            ignored.add(named.pop(text))
        elif re.fullmatch(r'-?\d+|\d+,\s*\d+,\s*\d+', text):
            parts = tuple(int(part) for part in text.split(','))
            ignored.add(parts if len(parts) == 3 else parts[0])
        else:
            raise ValueError(f'--ignore takes ids, colours as r,g,b, or names of --classes, got {text!r}.')
    if named is not None:
        named = {name: value for name, value in named.items() if value not in ignored}
        if len(named) < 2:
            rest = ' without what --ignore names' if ignored else ''
            raise ValueError(
                f'--classes {classes}{rest} gives {len(named)} of the 2 or more classes of a dataset: name the background '
                f'too, as in --classes background,crack.'
            )
    return named, ignored


def _named(classes: str) -> dict[str, Value]:
    """Value of each class of ``--classes``."""
    if os.path.isfile(classes):  # Path.is_file fails where a list is longer than a name may be
        return read_classes(Path(classes))
    if ',' not in classes:
        raise ValueError(
            f'--classes {classes!r} is neither a file nor two or more names with commas between them: name the background '
            f'too, as in --classes background,crack.'
        )
    names = [name.strip() for name in classes.split(',')]
    if '' in names:
        raise ValueError(f'--classes {classes} has an empty name: give one for each of the ids from 0 to {len(names) - 1}.')
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f'--classes {classes} has the name {twice[0]} twice: give each class a name of its own.')
    return {name: i for i, name in enumerate(names)}


def read_classes(path: Path) -> dict[str, Value]:
    """Classes from a text file, one per line, with blanks or commas between the parts.

    ``name`` (of the ids 0, 1, …), ``name id``, ``id name``, ``name r g b`` or ``r g b name``. A first line of headings
    (``name, r, g, b``), and lines that begin with ``#``, are skipped.

    Raises:
        ValueError: If a line reads otherwise, or a name or value comes twice, with the line.
    """
    classes: dict[str, Value] = {}
    bare = 0
    try:
        lines = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is no text in UTF-8: save it as such. ({error})') from error
    for number, line in enumerate(lines, 1):
        if not line or line.startswith('#') or (number == 1 and re.fullmatch(HEADINGS, line)):
            continue
        name, value = _class(line)
        if value is None:
            value, bare = bare, bare + 1
        if not name or name in classes or value in classes.values() or (isinstance(value, tuple) and max(value) > 255):
            raise ValueError(
                f'{path}, line {number}: {line!r} has no name, or one or a value that came before, or is no colour.'
            )
        classes[name] = value
    if len({type(value) for value in classes.values()}) > 1 or 0 < bare < len(classes):
        raise ValueError(f'{path}: some lines have a colour or an id and others have not: give all of them the same.')
    return classes


def _class(line: str) -> tuple[str, Value | None]:
    """Name and value of a line; None where it has only a name."""
    found = next(filter(None, (re.fullmatch(form, line) for form in FORMS)), None)
    name, numbers = (found['name'], re.findall(ID, found['value'])) if found else (line, [])
    name = name.strip(' ,;:"\'')
    if len(numbers) < 2:
        return name, int(numbers[0]) if numbers else None
    red, green, blue = map(int, numbers)
    return name, (red, green, blue)
