"""Results as text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

WIDTH = 8  # Characters of a column.


class Section(NamedTuple):
    """A part of a table: a line of column names, then a line for each row."""

    head: str  # Stands over the names of the rows.
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]  # {name of the row: {column: fraction or None}}


def format_sections(*sections: Section) -> str:
    """Formats fractions with three decimals, as files and documents have them; a dash for None.

    An empty line divides two sections.

    >>> print(format_sections(Section("class", ("AP",), {"cat": {"AP": 0.5}, "dog": {"AP": None}})))
    class      AP
    cat     0.500
    dog         -
    """
    names = [name for section in sections for name in (section.head, *section.rows)]
    width = max(map(len, names))
    return "\n\n".join("\n".join(_lines(section, width)) for section in sections)


def _lines(section, width):
    yield _line(section.head, section.columns, width)
    for name, values in section.rows.items():
        yield _line(name, [_fraction(values[column]) for column in section.columns], width)


def _fraction(value):
    return "-" if value is None else f"{value:.3f}"


def _line(head, cells, width):
    return f"{head:<{width}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)
