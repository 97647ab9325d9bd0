"""Anchor boxes of a feature pyramid and their masks.

Sizes and strides are static, so anchors are NumPy arrays: constants under jit.
Anchors run over levels, then y, then x, then ratio, then scale.

Reference: mmdetection 2.11, AnchorGenerator and anchor_inside_flags;
simple-faster-rcnn's bbox_tools, whose anchors are centred in their cells;
torchvision's AnchorGenerator, whose anchors are rounded.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxdet.ops.contracts import check_at_least, check_fractions, check_shapes


class GridPoints(NamedTuple):
    """The cells of a pyramid, of one box each, where a detector has no anchor boxes.

    Attributes:
        centres: (x, y) of each cell's middle, in pixels.
        strides: pixels a cell.
    """

    centres: Float[Array | np.ndarray, "N 2"]
    strides: Float[Array | np.ndarray, " N"]


def octave_scales(base: float, num_scales: int) -> tuple[float, ...]:
    """Scales that split one octave evenly: base x 2^(i / num_scales), as RetinaNet has them.

    >>> [round(scale, 2) for scale in octave_scales(4, 3)]
    [4.0, 5.04, 6.35]

    Raises:
        ValueError: if `base` is not above 0 or `num_scales` is below 1.

    Reference: Lin et al., Focal Loss, sec. 4, arXiv:1708.02002.
    """
    _check_positive(base=[base])
    check_at_least(1, num_scales=num_scales)
    return tuple(base * 2 ** (i / num_scales) for i in range(num_scales))


def base_anchors(
    stride: int,
    *,
    scales: Sequence[float],
    ratios: Sequence[float],
    centre: float = 0.0,
    rounded: bool = False,
) -> Float[np.ndarray, "A 4"]:
    """Anchors of one cell; ratio-major, then scale.

    >>> base_anchors(4, scales=(1,), ratios=(1, 4))
    array([[-2., -2.,  2.,  2.],
           [-1., -4.,  1.,  4.]], dtype=float32)

    Args:
        stride: pixels a cell; times a scale it is the side of the square anchor.
        scales: sides in strides.
        ratios: height / width, at equal area.
        centre: of the anchors in the cell, in strides: 0 is its top left corner
            (mmdetection), 0.5 its middle (simple-faster-rcnn).
        rounded: drop fractions of the square anchors' sides, and round corners
            to whole pixels, halves to even ones, as torchvision does.

    Raises:
        ValueError: if stride, scales or ratios are not above 0, there are none,
            or `centre` lies outside [0, 1].
    """
    _check_positive(stride=[stride], scales=scales, ratios=ratios)
    check_fractions(centre=centre)
    root = np.sqrt(np.asarray(ratios, np.float64))
    sides = stride * np.asarray(scales, np.float64)
    if rounded:
        sides = np.floor(sides)
    heights = (root[:, None] * sides).ravel()
    widths = (sides / root[:, None]).ravel()
    corners = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
    if rounded:
        corners = np.round(corners)
    return (corners + stride * centre).astype(np.float32)


@check_shapes
def grid_anchors(
    base: Float[np.ndarray, "A 4"], feature_size: tuple[int, int], stride: int | tuple[int, int]
) -> Float[np.ndarray, "N 4"]:
    """Base anchors at the top left corner of every cell of a map of (height, width) cells.

    >>> grid_anchors(np.array([[-1, -1, 1, 1]], np.float32), (1, 2), 4)
    array([[-1., -1.,  1.,  1.],
           [ 3., -1.,  5.,  1.]], dtype=float32)

    Args:
        base: anchors of the cell at the origin.
        feature_size: (height, width) in cells.
        stride: pixels a cell, or (height, width) of one.

    Raises:
        ValueError: if `stride` is not above 0 or a side of the map is negative.
    """
    down, right = (stride, stride) if isinstance(stride, int) else stride
    _check_positive(stride=[down, right])
    height, width = feature_size
    check_at_least(0, height=height, width=width)
    y, x = np.meshgrid(np.arange(height) * down, np.arange(width) * right, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def pyramid_anchors(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    scales: Sequence[float],
    ratios: Sequence[float],
    centre: float = 0.0,
    rounded: bool = False,
    canvas: tuple[int, int] | None = None,
) -> Float[np.ndarray, "N 4"]:
    """Anchors of all levels, concatenated; of one level where there is no pyramid.

    >>> pyramid_anchors([(2, 1), (1, 1)], [4, 8], scales=(1,), ratios=(1,), centre=0.5)
    array([[0., 0., 4., 4.],
           [0., 4., 4., 8.],
           [0., 0., 8., 8.]], dtype=float32)

    Args:
        feature_sizes: (height, width) in cells, finest level first.
        strides: pixels a cell, of each level.
        scales: sides of the square anchors, in strides.
        ratios: height / width.
        centre: of the anchors in their cells, in strides, as in `base_anchors`.
        rounded: whether they are rounded to whole pixels, as in `base_anchors`.
        canvas: (height, width) in pixels, of which cells get equal shares, without
            fractions, as torchvision has it; None lays them strides apart. They
            differ where a map has a last cell that the canvas fills in part.

    Raises:
        ValueError: if the numbers of feature sizes and strides differ, or a
            setting is out of the range that `base_anchors` wants.
    """
    _check_levels(feature_sizes, strides)
    levels = []
    for feature_size, stride in zip(feature_sizes, strides, strict=True):
        base = base_anchors(stride, scales=scales, ratios=ratios, centre=centre, rounded=rounded)
        step = stride
        if canvas is not None:
            step = canvas[0] // feature_size[0], canvas[1] // feature_size[1]
        levels.append(grid_anchors(base, feature_size, step))
    return np.concatenate(levels)


def grid_points(feature_sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> GridPoints:
    """The middles of the cells of all levels, concatenated; over levels, then y, then x.

    >>> grid_points([(1, 2), (1, 1)], [4, 8]).centres
    array([[2., 2.],
           [6., 2.],
           [4., 4.]], dtype=float32)

    Args:
        feature_sizes: (height, width) in cells, finest level first.
        strides: pixels a cell, of each level.

    Raises:
        ValueError: if the numbers of feature sizes and strides differ, a stride
            is not above 0 or a side of a map is negative.

    Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430.
    """
    _check_levels(feature_sizes, strides)
    centres, steps = [], []
    for feature_size, stride in zip(feature_sizes, strides, strict=True):
        middle = np.full((1, 4), stride / 2, np.float32)
        level = grid_anchors(middle, feature_size, stride)[:, :2]
        centres.append(level)
        steps.append(np.full(len(level), stride, np.float32))
    return GridPoints(np.concatenate(centres), np.concatenate(steps))


@check_shapes
def pyramid_valid(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size: Int[Array, "2"],
    *,
    num_base: int,
    divisor: int = 32,
    whole_cells: bool = False,
) -> Bool[Array, " N"]:
    """True for anchors of cells that the image itself covers, not the canvas padding.

    >>> pyramid_valid([(1, 3)], [32], jnp.array([30, 40]), num_base=1)
    Array([ True,  True, False], dtype=bool)

    Args:
        feature_sizes: (height, width) in cells, of the padded canvas.
        strides: pixels a cell.
        size: (height, width) of the content in pixels; rounded up to `divisor`,
            as the reference pads each image.
        num_base: anchors a cell.
        divisor: what the reference pads an image's sides to.
        whole_cells: count only the cells that the image fills, whatever the
            divisor, as backbones do that drop what their poolings leave over.

    Raises:
        ValueError: if the numbers of feature sizes and strides differ, or a
            stride, `num_base` or `divisor` is below 1.
    """
    _check_levels(feature_sizes, strides)
    check_at_least(1, num_base=num_base, divisor=divisor)
    padded = -(-size // divisor) * divisor
    levels = []
    for (height, width), stride in zip(feature_sizes, strides, strict=True):
        cells = size // stride if whole_cells else -(-padded // stride)
        covered = (np.arange(height)[:, None] < cells[0]) & (np.arange(width) < cells[1])
        levels.append(jnp.repeat(covered.ravel(), num_base))
    return jnp.concatenate(levels)


@check_shapes
def inside_image(
    anchors: Shaped[Array | np.ndarray, "N 4"],
    size: Int[Array, "2"],
    *,
    allowed_border: float = 0,
    count_touching: bool = False,
) -> Bool[Array, " N"]:
    """True for anchors that reach at most `allowed_border` pixels outside an image.

    Left and top compare with >=, right and bottom with <, as mmdetection does.

    >>> inside_image(jnp.array([[0, 0, 9, 9], [0, 0, 9, 10], [-1, 0, 5, 5]]), jnp.array([10, 10]))
    Array([ True, False, False], dtype=bool)

    Args:
        anchors: of any image; NaN is never inside.
        size: (height, width) of the image.
        allowed_border: pixels; a negative border lets every anchor pass.
        count_touching: compare right and bottom with <= instead, as
            simple-faster-rcnn does.

    Raises:
        ValueError: if `allowed_border` is NaN.
    """
    if math.isnan(allowed_border):
        raise ValueError(f"allowed_border must be a number, got {allowed_border}")
    if allowed_border < 0:
        return jnp.ones(anchors.shape[0], bool)
    x1, y1, x2, y2 = jnp.moveaxis(jnp.asarray(anchors, jnp.float32), -1, 0)
    height, width = size + allowed_border
    not_after = jnp.less_equal if count_touching else jnp.less
    not_before = (x1 >= -allowed_border) & (y1 >= -allowed_border)
    return not_before & not_after(x2, width) & not_after(y2, height)


def _check_levels(feature_sizes, strides):
    if len(feature_sizes) != len(strides):
        raise ValueError(f"{len(feature_sizes)} feature maps but {len(strides)} strides: {strides}")
    _check_positive(strides=strides)


def _check_positive(**settings):
    for name, values in settings.items():
        if not (len(values) and all(0 < value < math.inf for value in values)):
            raise ValueError(f"{name} must be finite numbers above 0, got {tuple(values)}")
