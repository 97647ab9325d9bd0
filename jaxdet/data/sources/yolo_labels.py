"""One label file of YOLO: a line for each object, its class and its place in parts of the image.

    class cx cy w h                a box
    class x1 y1 x2 y2 x3 y3 ...    a polygon; the box around it is taken

ultralytics takes all lines of a file for polygons where one is; here each line is for itself.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data.sources.several import read_all
from jaxdet.data.sources.values import number
from jaxdet.text_files import read_text
from jaxdet.types import UserError

_BOX = 4  # Numbers of a box; polygons have 6 or more.
_TRACKED = 6  # Also those of a box with its score and the whole number of its track.
# As far outside of the image ultralytics takes a coordinate for a rounded one.
TOLERANCE = 0.01


class Objects(NamedTuple):
    """What a file says.

    Attributes:
        numbers: the class of each object.
        corners: its box, [x1, y1, x2, y2] as fractions of width and height; (n, 4) float64.
        repeated: lines that say what one before them said, and are left out.
    """

    numbers: list[int]
    corners: np.ndarray
    repeated: int


def read(path: Path, num_classes: int, *, pose: int = 0) -> Objects:
    """Reads a file, which may be empty.

    Args:
        path: of the file.
        num_classes: classes are whole numbers below this.
        pose: numbers behind the box that place key points, which are not read; 0 for none.

    Raises:
        UserError: for lines that are no objects, with their numbers.
        OSError: if it cannot be read.
    """

    def read_one(item):
        place, words = item
        try:
            numbers = tuple(map(_finite, words))
            return numbers, _object(words, numbers, num_classes, pose)
        except ValueError as error:
            raise UserError(f"{path}:{place}: {error}") from None

    lines = enumerate(map(str.split, read_text(path).splitlines()), 1)
    said = read_all(read_one, ((place, words) for place, words in lines if words))
    once = list(dict(said).values())
    corners = np.array([box for _, box in once], np.float64).reshape(-1, 4)
    return Objects([label for label, _ in once], corners, len(said) - len(once))


def _object(
    words: list[str], numbers: tuple[float, ...], num_classes: int, pose: int
) -> tuple[int, tuple[float, ...]]:
    label, *values = numbers
    if not label.is_integer() or not 0 <= label < num_classes:
        raise ValueError(f"class wants a whole number below {num_classes}, found {words[0]}")
    if pose and len(values) != _BOX + pose:
        raise ValueError(
            f"wants cx cy w h and the {pose} numbers of kpt_shape behind the class, "
            f"found {len(values)}"
        )
    values = values[:_BOX] if pose else values
    if len(values) != _BOX and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            "wants cx cy w h behind the class, or a polygon's x y of 3 points or more, found "
            f"{len(values)} numbers" + "; is the last one a score?" * (len(values) == _BOX + 1)
        )
    box = _around(*values[:_BOX])
    if len(values) == _TRACKED and words[-1].isdecimal() and all(map(_is_part, box)):
        raise ValueError(
            f"found {_TRACKED} numbers behind the class, the last {words[-1]}: a box, its score "
            "and its track, or a triangle? leave these two out, or write a triangle's 1 as 1.0"
        )
    for value, word in zip(values, words[1:], strict=False):
        if not _is_part(value):
            raise ValueError(f"wants parts of the image's sides, from 0 to 1, found {word}")
    if len(values) == _BOX:
        return int(label), box
    xs, ys = values[::2], values[1::2]
    return int(label), (min(xs), min(ys), max(xs), max(ys))


def _around(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _is_part(value: float) -> bool:
    return -TOLERANCE <= value <= 1 + TOLERANCE


def _finite(word: str) -> float:
    if math.isnan(value := number(word)):
        raise ValueError(f"wants finite numbers, found {word!r:.40}")
    return value
