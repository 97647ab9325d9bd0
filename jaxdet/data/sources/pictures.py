"""Draws pictures of shapes on textured backgrounds, with their boxes.

Later shapes partly cover earlier ones, and some leave the picture in part.
Boxes are tight around the *visible* pixels. A shape is placed only where it and
all earlier ones stay visible by at least `MIN_VISIBLE` of their area: no scrap
that nobody could name is annotated, or shown without an annotation.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

MIN_VISIBLE = 0.6

# A place or a colour that does not do is drawn again, this often at most.
_TRIES = 20
# Least difference of a shape from what it covers, in the channel where it is greatest.
_MIN_CONTRAST = 60
# Coordinates are given to OpenCV in sixteenths of a pixel.
_SHIFT = 4


class Picture(NamedTuple):
    """A picture with its annotations; labels are places in the list of kinds."""

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]


def draw_picture(
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    kinds: tuple[str, ...],
    num_objects: int,
    size_range: tuple[int, int],
    max_turn: float = 180.0,
) -> Picture:
    """Draws one picture.

    Args:
        rng: the source of all draws.
        size: (height, width).
        kinds: the names in `KINDS` to draw from.
        num_objects: shapes to place; fewer where there is no room.
        size_range: least and greatest diameter, drawn evenly in its logarithm.
        max_turn: shapes are turned by up to so many degrees either way.
    """
    canvas = _background(rng, *size)
    owner = np.full(size, -1)
    labels, areas = [], []
    for _ in range(num_objects):
        label = int(rng.integers(len(kinds)))
        mask, area = _place(rng, KINDS[kinds[label]], owner, areas, size_range, max_turn)
        if mask is None:
            continue
        owner[mask >= 0.5] = len(labels)
        _paint(rng, canvas, mask)
        labels.append(label)
        areas.append(area)
    canvas += rng.normal(0, rng.uniform(1, 8), canvas.shape)
    return Picture(
        image=np.clip(canvas, 0, 255).astype(np.uint8),
        boxes=np.array([_tight_box(owner == k) for k in range(len(labels))], np.float32).reshape(
            -1, 4
        ),
        labels=np.array(labels, np.int32),
    )


def _regular(corners, radius=0.5, turn=0.0):
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _star():
    points = np.empty((10, 2))
    points[::2], points[1::2] = _regular(5), _regular(5, 0.2, np.pi / 5)
    return points


def _cross():
    a, b = 0.15, 0.48
    return np.array(
        [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        + [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    )


# Outlines of diameter 1 around the origin; a second outline is a hole.
KINDS = {
    "circle": [_regular(48)],
    "square": [_regular(4, turn=np.pi / 4)],
    "triangle": [_regular(3)],
    "star": [_star()],
    "cross": [_cross()],
    "ring": [_regular(48), _regular(48, 0.27)],
}


def _background(rng, height, width):
    """A gradient with clouds, stripes and lines, each there or not; float32 RGB."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    first, second = rng.uniform(30, 225, (2, 3))
    canvas = (first + (second - first) * ramp * rng.uniform(0, 0.8)).astype(np.float32)
    if rng.random() < 0.7:
        cells = rng.integers(3, 24)
        clouds = rng.normal(0, rng.uniform(5, 25), (cells, cells, 3)).astype(np.float32)
        canvas += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 30)
        phase = 2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y)
        canvas += (rng.uniform(-25, 25, 3) * np.sin(phase)[..., None]).astype(np.float32)
    for _ in range(rng.integers(0, 5)):
        start, end = (rng.uniform(0, 1, (2, 2)) * [width, height]).astype(int).tolist()
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.line(canvas, start, end, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return canvas


def _place(rng, outlines, owner, areas, size_range, max_turn):
    """The coverage of a shape at a fitting place, and its whole area; else (None, 0)."""
    for _ in range(_TRIES):
        diameter = np.exp(rng.uniform(*np.log(size_range)))
        stretch = np.exp(rng.uniform(-0.2, 0.2) * np.array([1, -1]))
        angle = np.deg2rad(rng.uniform(-max_turn, max_turn))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = rng.uniform(0, 1, 2) * owner.shape[::-1]
        polygons = [(diameter * (o * stretch) @ turn + centre).astype(np.float32) for o in outlines]
        area = cv2.contourArea(polygons[0]) - sum(map(cv2.contourArea, polygons[1:]))
        mask = _rasterise(polygons, owner.shape)
        shown = mask >= 0.5
        left = np.bincount(owner[(owner >= 0) & ~shown], minlength=len(areas))
        enough = np.array([*areas, area]) * MIN_VISIBLE
        if np.all(np.append(left, shown.sum()) >= enough) and shown.any():
            return mask, area
    return None, 0


def _rasterise(polygons, size):
    """How much of each pixel the polygons cover, 0 to 1; pixel k spans k to k + 1."""
    mask = np.zeros(size, np.uint8)
    points = [np.round((p - 0.5) * 2**_SHIFT).astype(np.int32) for p in polygons]
    cv2.fillPoly(mask, points, 255, cv2.LINE_AA, _SHIFT)
    return mask.astype(np.float32) / 255


def _paint(rng, canvas, mask):
    """Blends a shaded, grained colour in that differs from what it covers."""
    height, width = mask.shape
    top, bottom = np.flatnonzero(mask.any(1))[[0, -1]]
    left, right = np.flatnonzero(mask.any(0))[[0, -1]]
    part = np.s_[top : bottom + 1, left : right + 1]
    canvas, mask = canvas[part], mask[part]
    behind = canvas[mask >= 0.5].mean(0)
    for _ in range(_TRIES):
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - behind).max() >= _MIN_CONTRAST:
            break
    ramp = np.linspace(-1, 1, width) * rng.uniform(-40, 40)
    fall = np.linspace(-1, 1, height)[:, None] * rng.uniform(-40, 40)
    grain = rng.normal(0, rng.uniform(0, 12), (height, width))
    paint = colour + (ramp + fall + grain)[part][..., None]
    canvas += mask[..., None] * (paint - canvas)


def _tight_box(shown):
    """[x1, y1, x2, y2] around all that is True, the far edges exclusive."""
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
