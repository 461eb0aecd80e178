"""Tables as Markdown."""

from collections.abc import Container, Sequence


def markdown_table(rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """The lines of a table whose columns are aligned in plain text too.

    Args:
        rows: Cells; the first row is the head.
        left: Columns that begin at the left; the others end at the right. Default: the first.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ['-' * width if i in left else '-' * (width - 1) + ':' for i, width in enumerate(widths)]
    aligned = [
        [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        for row in rows
    ]
    return [f'| {" | ".join(row)} |' for row in (aligned[0], rule, *aligned[1:])]
