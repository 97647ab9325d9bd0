"""The rows of a table of boxes, read against its declared columns."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdet.data.sources import text
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


class Row(NamedTuple):
    """A row; without a box it names an image without objects. Sides are 0 where it has none."""

    image: str
    box: tuple[float, float, float, float] | None
    name: str
    size: tuple[int, int]


def read(path: Path) -> list[Row]:
    """Reads a table, whose cells are divided by commas, semicolons or tabs.

    Raises:
        UserError: if there is none, its columns are others, or a row says what can mean two things.
    """
    if not path.is_file():
        raise UserError(f"no annotation file {path}")
    content = text.read_text(path)
    first = next((line for line in content.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    rows, places, width = [], {}, 0
    boxed: dict[str, bool] = {}
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not places:
                places, width = _places(cells), len(cells)
                if not _is_plain(cells):
                    continue  # They are the names of the columns.
            if len(cells) != width:
                raise ValueError(f"wants {width} cells, found {len(cells)}")
            row = _row(cells, places)
            if boxed.setdefault(row.image, bool(row.box)) != bool(row.box):
                raise ValueError(f"{row.image!r} has an object in one row, and none in another")
            rows.append(row)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: wanted rows of boxes, found none")
    return rows


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
    return not any(cells[1:]) or all(math.isfinite(_number(corner)) for corner in corners)


def _row(cells: Sequence[str], places: dict[str, int]) -> Row:
    image, name = cells[places["image"]], cells[places["class"]]
    corners = [cells[places[corner]] for corner in _CORNERS]
    if not image:
        raise ValueError("the image wants a name, found none")
    size = tuple(_side(cells[places[side]]) if side in places else 0 for side in _SIDES)
    if not name and not any(corners):
        return Row(image, None, "", size)
    if not name:
        raise ValueError("the class wants a name, found none")
    x1, y1, x2, y2 = box = tuple(map(_number, corners))
    for corner, cell, value in zip(_CORNERS, corners, box, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{corner} wants a finite number, found {cell!r:.40}")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"wants x1 < x2 and y1 < y2, found {', '.join(corners)}")
    return Row(image, box, name, size)


def _number(cell: str) -> float:
    """NaN for what is no number."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _side(cell: str) -> int:
    """Whole pixels; 0 for what is no size: the picture knows."""
    side = _number(cell)
    return int(side) if 1 <= side < math.inf else 0
