"""How well anchors fit objects: the best overlap of each, of a whole data set at once.

The anchors of a level stand on a grid, so the best one for a box is, for each of the base
anchors, the one whose middle is nearest in x and in y: no box meets all anchors.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxdet.detectors.assigned import Assigned
from jaxdet.detectors.settings import AnchorGrid, Inside


class Row(NamedTuple):
    """One base anchor of a level: where it stands along x or y."""

    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


def best_overlaps(
    boxes: Float[np.ndarray, "N 4"],
    sizes: Int[np.ndarray, "N 2"],
    assigned: Assigned,
    *,
    grid: AnchorGrid,
    inside: Inside,
) -> Float[np.ndarray, " N"]:
    """The best IoU of each box with any anchor that may train on its image.

    Args:
        boxes: with an area, in pixels of the canvas.
        sizes: (height, width) of the image of each, on the canvas.
        assigned: has the anchors, as `Detector.assign` gives them.
        grid: what made them.
        inside: which of them may train.

    Returns:
        0 to 1; 0 where no anchor may train.
    """
    best = np.zeros(len(boxes))
    boxes = boxes.astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for stride, columns, rows in _bases(assigned):
        across = _overlap(boxes[:, 0::2], sizes[:, 1], columns, stride, grid, inside)
        down = _overlap(boxes[:, 1::2], sizes[:, 0], rows, stride, grid, inside)
        common = across * down
        own = (columns.high[0] - columns.low[0]) * (rows.high[0] - rows.low[0])
        best = np.maximum(best, common / (areas + own - common))
    return best


def base_sizes(assigned: Assigned) -> Float[np.ndarray, "A 2"]:
    """(height, width) of the anchors of one cell of each level, in pixels of the canvas."""
    sizes = [(y.high[0] - y.low[0], x.high[0] - x.low[0]) for _, x, y in _bases(assigned)]
    return np.array(sizes, float).reshape(-1, 2)


def _bases(assigned: Assigned) -> Iterator[tuple[int, Row, Row]]:
    """Each base anchor of each level: its stride, and its places along x and y."""
    boxes, first = np.asarray(assigned.boxes, np.float64), 0
    for level in assigned.levels:
        height, width = level.cells
        own = boxes[first : first + level.count].reshape(height, width, -1, 4)
        first += level.count
        for base in range(own.shape[2]):
            x1, x2 = own[0, :, base, 0::2].T
            y1, y2 = own[:, 0, base, 1::2].T
            yield level.stride, Row(x1, x2), Row(y1, y2)


def _overlap(
    sides: Float[np.ndarray, "N 2"],
    lengths: Int[np.ndarray, " N"],
    row: Row,
    stride: int,
    grid: AnchorGrid,
    inside: Inside,
) -> Float[np.ndarray, " N"]:
    """How much the nearest anchor that may train covers along one axis."""
    first, last = _allowed(lengths, row, stride, grid, inside)
    middles = (row.low + row.high) / 2
    wanted = sides.mean(axis=1)
    place = np.searchsorted((middles[1:] + middles[:-1]) / 2, wanted)
    place = np.clip(place, first, np.maximum(last, first))
    place = np.minimum(place, len(middles) - 1)
    common = np.minimum(sides[:, 1], row.high[place]) - np.maximum(sides[:, 0], row.low[place])
    return np.where(last >= first, np.maximum(common, 0), 0)


def _allowed(
    lengths: Int[np.ndarray, " N"], row: Row, stride: int, grid: AnchorGrid, inside: Inside
) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, " N"]]:
    """The first and the last anchor along one axis of images of such lengths that may train.

    See `ops.anchors.pyramid_valid` and `ops.anchors.inside_image`.
    """
    padded = -(-lengths // grid.divisor) * grid.divisor
    cells = lengths // stride if grid.whole_cells else -(-padded // stride)
    last = np.minimum(cells, len(row.low)) - 1
    border = inside.allowed_border
    if border < 0:
        return np.zeros_like(last), last
    side = "right" if inside.count_touching else "left"
    last = np.minimum(last, np.searchsorted(row.high, lengths + border, side) - 1)
    return np.full_like(last, np.searchsorted(row.low, -border)), last
