"""Random affine maps of a picture: rotation, zoom, shear and translation; boxes follow.

Matrices map points of the plane, where pixel i covers [i, i + 1], as boxes do.
OpenCV puts pixel i at the coordinate i; only `move` knows that.
"""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float

from jaxdet.data import transforms
from jaxdet.data.decoding import FILL
from jaxdet.types import Example

# What makes an object worth keeping: a larger share of its area than this, and sides below this
# ratio (YOLOX 0.1).
MIN_AREA_SHARE = 0.2
MAX_ASPECT = 20.0
# Moved objects have sides above this, pixels (YOLOX 0.1).
AFFINE_MIN_SIDE = 2.0

BOX_RULES = ("corners", "ellipse")


def random_affine(
    example: Example,
    rng: np.random.Generator,
    *,
    output_size: tuple[int, int],
    rotation: float = 10.0,
    translation: float = 0.1,
    zoom_range: tuple[float, float] = (0.1, 2.0),
    shear: float = 2.0,
    box_rule: Literal["corners", "ellipse"] = "corners",
) -> Example:
    """Moves a picture by a random affine map; see `affine_matrix` and `move`.

    Args:
        example: decoded, without proposals.
        rng: draws the angle, the zoom, two shears and two shifts, in this order.
        output_size: (height, width) of the result.
        rotation: the angle is drawn within so many degrees either way.
        translation: the middle of the picture comes to that of the output,
            moved within this share of its width and height either way.
        zoom_range: a factor is drawn evenly from it.
        shear: the two angles are drawn within so many degrees either way, below 45.
        box_rule: as in `move`.

    Reference: YOLOX 0.1, random_perspective.
    """
    matrix = affine_matrix(
        example.image.shape[:2],
        output_size,
        angle=rng.uniform(-rotation, rotation),
        zoom=rng.uniform(*zoom_range),
        shear=tuple(rng.uniform(-shear, shear, 2)),
        shift=tuple(rng.uniform(-translation, translation, 2)),
    )
    return move(example, matrix, output_size=output_size, box_rule=box_rule)


def affine_matrix(
    size: tuple[int, int],
    output_size: tuple[int, int],
    *,
    angle: float,
    zoom: float,
    shear: tuple[float, float],
    shift: tuple[float, float],
) -> Float[np.ndarray, "2 3"]:
    """The map that rotates and zooms about the middle, then shears, then shifts.

    Args:
        size: (height, width) of the picture.
        output_size: (height, width) of the result.
        angle: degrees, counter-clockwise as seen.
        zoom: output pixels per pixel of the picture.
        shear: along x and along y, degrees.
        shift: where the middle comes to, from the output's middle, in its widths
            and its heights.
    """
    cosine, sine = zoom * np.cos(np.radians(angle)), zoom * np.sin(np.radians(angle))
    along_x, along_y = np.tan(np.radians(shear))
    linear = np.array([[1, along_x], [along_y, 1]]) @ [[cosine, sine], [-sine, cosine]]
    middle = np.array(size[::-1]) / 2
    target = (0.5 + np.asarray(shift)) * output_size[::-1]
    return np.column_stack([linear, target - linear @ middle])


def move(
    example: Example,
    matrix: Float[np.ndarray, "2 3"],
    *,
    output_size: tuple[int, int],
    box_rule: Literal["corners", "ellipse"] = "corners",
) -> Example:
    """Moves pixels and boxes by an affine map; grey 114 fills what the picture leaves.

    Boxes become the axis-parallel hull of what moves, clipped to the output;
    `is_visible` tells which are kept, by the share of their moved area, which is
    the area times the map's determinant (YOLOX: times zoom^2, shear left aside).
    All that is left of crowds is kept, too.
    Bilinear, except below half size: there bilinear skips pixels, and area
    averaging shrinks the picture first (YOLOX: always bilinear).

    Args:
        example: decoded, without proposals. `size` and `area` stay.
        matrix: maps (x, y, 1) of the picture to the output.
        output_size: (height, width) of the result.
        box_rule: what moves with an object: the four "corners" of its box, as in
            YOLOX, which holds all of it, but is too large once rotated; or the
            "ellipse" in its box, which is exact for round objects and cuts
            the corners of others.

    Reference: Kalra et al., Towards Rotation Invariance in Object Detection,
    sec. 3, arXiv:2109.13488 (the ellipse).
    """
    height, width = output_size
    boxes = hulls(example.boxes, matrix, box_rule=box_rule)
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    scale = abs(np.linalg.det(matrix[:, :2]))
    keep = is_visible(boxes, transforms.areas(example.boxes) * scale, min_side=AFFINE_MIN_SIDE)
    moved = example._replace(image=_warp(example.image, matrix, output_size), boxes=boxes)
    return transforms.select(moved, keep | transforms.crowds_left(moved))


def hulls(
    boxes: Float[np.ndarray, "N 4"],
    matrix: Float[np.ndarray, "2 3"],
    *,
    box_rule: Literal["corners", "ellipse"],
) -> Float[np.ndarray, "N 4"]:
    """The axis-parallel hulls of moved boxes, or of the moved ellipses in them.

    An affine map takes the middle to the middle. A corner is half the width
    and half the height away from it, and both add up; on an ellipse they
    share one unit circle, and their squares add up.
    """
    linear, offset = matrix[:, :2], matrix[:, 2]
    corners = boxes.astype(np.float64).reshape(-1, 2, 2)
    middles = corners.mean(axis=1) @ linear.T + offset
    halves = (corners[:, 1] - corners[:, 0]) / 2
    if box_rule == "corners":
        halves = halves @ np.abs(linear).T
    else:
        halves = np.sqrt(halves**2 @ (linear**2).T)
    return np.concatenate([middles - halves, middles + halves], axis=1)


def is_visible(
    boxes: Float[np.ndarray, "N 4"], whole_areas: Float[np.ndarray, " N"], *, min_side: float
) -> Bool[np.ndarray, " N"]:
    """Whether enough of each object is left: of its sides, its shape and its area.

    Args:
        boxes: what is left of each, clipped.
        whole_areas: of the objects at the same scale, before clipping.
        min_side: both sides are larger.

    Reference: YOLOX 0.1, box_candidates.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    whole = transforms.areas(boxes) > MIN_AREA_SHARE * whole_areas
    return (shorter > min_side) & (longer < MAX_ASPECT * shorter) & whole


def _warp(image, matrix, output_size):
    """The pixels of `move`."""
    size = np.array(image.shape[1::-1])
    linear, offset = matrix[:, :2], matrix[:, 2]
    zoom = np.sqrt(abs(np.linalg.det(linear)))
    if zoom < 0.5:
        shrunk = np.maximum(1, np.round(size * zoom)).astype(int)
        image = cv2.resize(image, shrunk.tolist(), interpolation=cv2.INTER_AREA)
        linear = linear * (size / shrunk)
    # The middle of pixel i, i + 0.5 in the plane, is i for OpenCV.
    offset = offset + linear @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(
        image,
        np.column_stack([linear, offset]),
        output_size[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL,) * 3,
    )
