"""Numbers as annotation files have them, in text or not."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)  # Boxes are float32, where more is infinite.


def number(value: Any) -> float:
    """A number of any kind or in decimal text.

    NaN for everything else, for NaN and for what is infinite in float32. Python's own 1_000 is
    no number of other programs.
    """
    if isinstance(value, str) and "_" in value:
        return math.nan
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return found if abs(found) <= LARGEST else math.nan


def side(value: Any) -> int:
    """Whole pixels; 0 for what is no size (the picture knows), and above a billion."""
    found = number(value)
    return int(found) if 1 <= found <= 1e9 else 0


def is_measurable(box: Sequence[float]) -> bool:
    """Whether [x1, y1, x2, y2], its sides and its area are numbers that float32 holds."""
    width, height = box[2] - box[0], box[3] - box[1]
    return all(abs(each) <= LARGEST for each in (*box, width, height, width * height))
