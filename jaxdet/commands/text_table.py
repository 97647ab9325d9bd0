"""Tables of text, as commands print them."""

from collections.abc import Iterable


def align(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Aligned columns, a line for each row: the first to the left, numbers to the right.

    >>> align(("part", "count"), [("neck", "5"), ("all", "1,234")])
    ['part  count', 'neck      5', 'all   1,234']
    """
    rows = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
