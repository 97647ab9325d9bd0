"""The rows of a table of boxes, read against its declared columns."""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.values import is_measurable, number, side
from jaxdet.text_files import read_text
from jaxdet.types import UserError

# What each column may be called, in any case, with spaces or - for _.
COLUMNS = {
    "image": ("image", "filename", "file_name", "image_path", "path", "file", "image_name", "img"),
    "x1": ("x1", "xmin", "x_min", "left"),
    "y1": ("y1", "ymin", "y_min", "top"),
    "x2": ("x2", "xmax", "x_max", "right"),
    "y2": ("y2", "ymax", "y_max", "bottom"),
    "class": ("class", "label", "class_name", "name", "category"),
}
_SIDES = {"height": ("height", "image_height"), "width": ("width", "image_width")}
_CORNERS = ("x1", "y1", "x2", "y2")
_PLAIN = ("image", *_CORNERS, "class")  # Of a table without a header.
_SEPARATOR = re.compile('"?sep=([,;\t])')  # A first line that Excel writes.


class Row(NamedTuple):
    """A row; without a box it names an image without objects. Sides are 0 where none is said."""

    line: int  # Of the file.
    image: str
    box: tuple[float, float, float, float] | None
    name: str
    size: tuple[int, int]


def read(path: Path) -> list[Row]:
    """Reads a table, whose cells are divided by commas, semicolons or tabs.

    Raises:
        UserError: if there is none, its columns are others, or rows say what can mean two things.
    """
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    lines = _lines(read_text(path), path)
    first, names = next(lines, (0, None))
    if names is None:
        raise UserError(f"{path}: wanted rows of boxes, found none")
    try:
        places = _places(names)
    except ValueError as error:
        raise UserError(f"{path}:{first}: {error}") from None
    if _is_plain(names):  # They are no names of columns.
        lines = itertools.chain([(first, names)], lines)
    before: dict[str, Row] = {}

    def read_one(line):
        place, cells = line
        try:
            if len(cells) != len(names):
                raise ValueError(f"wants {len(names)} cells, found {len(cells)}")
            row = _row(place, cells, places)
            before[row.image] = _agreed(row, before.get(row.image, row))
        except ValueError as error:
            raise UserError(f"{path}:{place}: {error}") from None
        return row

    rows = read_all(read_one, lines)
    if not rows:
        raise UserError(f"{path}: wanted rows of boxes, found none")
    return [row._replace(size=before[row.image].size) for row in rows]


def is_table(path: Path) -> bool:
    """Whether the first row is what `read` takes; what is wrong below is said when it is read."""
    try:
        _, names = next(_lines(read_text(path), path), (0, []))
        return bool(_places(names))
    except ValueError:
        return False


def first_image(path: Path) -> str:
    """The image that the first row of a table names, with its folder; "" where there is none."""
    lines = _lines(read_text(path), path)
    _, cells = next(lines)
    place = _places(cells)["image"]
    if not _is_plain(cells):
        _, cells = next(lines, (0, []))
    return cells[place].replace("\\", "/") if place < len(cells) else ""


def _lines(content: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that has one, and its line."""
    first = next((line for line in content.splitlines() if line.strip()), "")
    excel = _SEPARATOR.match(first)
    delimiter = excel[1] if excel else max(",;\t", key=first.count)
    reader = csv.reader(
        io.StringIO(content, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells) and not excel:
                yield reader.line_num, cells
            excel = excel if not any(cells) else None
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from None


def _agreed(row: Row, before: Row) -> Row:
    """What two rows say of one image; a size that lacks a side is none."""
    if bool(row.box) != bool(before.box):
        raise ValueError(f"{row.image!r} has an object in one row, and none in another")
    sizes = {each.size for each in (row, before) if all(each.size)}
    if len(sizes) > 1:
        here, there = (" x ".join(map(str, each.size)) for each in (row, before))
        raise ValueError(
            f"{row.image!r} is {here} pixels here (height x width), and {there} in another row"
        )
    return row._replace(size=next(iter(sizes), (0, 0)))


def _places(cells: Sequence[str]) -> dict[str, int]:
    """The place of each column, from the names in the first row, or as `_PLAIN` has them."""
    if _is_plain(cells):
        return {column: place for place, column in enumerate(_PLAIN)}
    names = [cell.lower().replace(" ", "_").replace("-", "_") for cell in cells]
    found = {}
    for column, called in {**COLUMNS, **_SIDES}.items():
        here = [place for place, name in enumerate(names) if name in called]
        if len(here) > 1:
            both = " and ".join(cells[place] for place in here)
            raise ValueError(f"the columns {both} both say {column}: leave one out")
        if here:
            found[column] = here[0]
    missing = [column for column in COLUMNS if column not in found]
    if missing:
        wanted = ", ".join("/".join(called[:2]) for called in COLUMNS.values())
        raise ValueError(
            f"wanted the columns {wanted}, or rows {','.join(_PLAIN)}; there is no "
            f"{', '.join(missing)} in {', '.join(cells)[:99]!r}"
        )
    return found


def _is_plain(cells: Sequence[str]) -> bool:
    """Whether a first row is an object, or an image without one, and no names of columns."""
    if len(cells) != len(_PLAIN):
        return False
    corners = cells[1:5]
    return not any(cells[1:]) or all(math.isfinite(number(corner)) for corner in corners)


def _row(line: int, cells: Sequence[str], places: dict[str, int]) -> Row:
    image, name = cells[places["image"]], cells[places["class"]]
    corners = [cells[places[corner]] for corner in _CORNERS]
    if not image:
        raise ValueError("the image wants a name, found none")
    size = tuple(side(cells[places[name]]) if name in places else 0 for name in _SIDES)
    if not name and not any(corners):
        return Row(line, image, None, "", size)
    if not name:
        raise ValueError("the class wants a name, found none")
    x1, y1, x2, y2 = box = tuple(map(number, corners))
    for corner, cell, value in zip(_CORNERS, corners, box, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{corner} wants a finite number, found {cell!r:.40}")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"wants x1 < x2 and y1 < y2, found {', '.join(corners)}")
    if not is_measurable(box):
        raise ValueError(f"wants sides and an area below 3.4e38, found {', '.join(corners)}")
    return Row(line, image, box, name, size)
