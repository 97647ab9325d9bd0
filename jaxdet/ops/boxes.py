"""Box geometry: areas, overlaps, formats, flips and sizes.

Boxes are [x1, y1, x2, y2] in pixels, x2 and y2 exclusive. All of it is
computed in float32 and returned as float32, whatever comes in.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from jaxdet.ops.contracts import check_at_least, check_shapes

# Keeps 0 / 0 out of overlaps of empty boxes, as the reference does (bbox_overlaps, eps).
_EPSILON = 1e-6


@check_shapes
def area(boxes: Real[Array, "*S 4"]) -> Float[Array, "*S"]:
    """Areas in square pixels; a box with a negative side has area 0.

    >>> area(jnp.array([[0, 0, 4, 3], [5, 5, 3, 9]]))
    Array([12.,  0.], dtype=float32)
    """
    x1, y1, x2, y2 = _corners(boxes)
    return _product(x2 - x1, y2 - y1)


@check_shapes
def clip(boxes: Real[Array, "*S 4"], size: Real[Array, "2"]) -> Float[Array, "*S 4"]:
    """Moves corners outside an image of `size` (height, width) to its border.

    >>> clip(jnp.array([-3, 2, 30, 9]), jnp.array([8, 20]))
    Array([ 0.,  2., 20.,  8.], dtype=float32)
    """
    height, width = size.astype(jnp.float32)
    limits = jnp.stack([width, height, width, height])
    return jnp.clip(boxes.astype(jnp.float32), 0, limits)


@check_shapes
def iou(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Intersection over union of boxes paired by broadcasting, in [0, 1].

    Two empty boxes have IoU 0. Jitted and eager results are equal bit for bit,
    so that ties survive `==` (see `_product`).

    >>> iou(jnp.array([[0, 0, 2, 2], [0, 0, 0, 0]]), jnp.array([0, 0, 2, 1]))
    Array([0.5, 0. ], dtype=float32)
    """
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    return intersection / jnp.maximum(union, _EPSILON)


@check_shapes
def iof(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Intersection over the area of `a` (the foreground), paired by broadcasting, in [0, 1].

    >>> iof(jnp.array([0, 0, 2, 2]), jnp.array([0, 0, 10, 1]))
    Array(0.5, dtype=float32)
    """
    intersection = _intersection(a, b)
    # The intersection is never the larger; without it XLA turns the division by an area that many
    # boxes share into a product with its inverse, an ulp off where a threshold may be met exactly.
    whole = jnp.maximum(area(a), intersection)
    return intersection / jnp.maximum(whole, _EPSILON)


@check_shapes
def giou(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Generalised IoU of boxes paired by broadcasting, in [-1, 1].

    The IoU minus the share of the smallest box around both (the hull) that
    neither covers; two equal empty boxes have 0.

    >>> giou(jnp.array([0, 0, 1, 1]), jnp.array([3, 0, 4, 1]))
    Array(-0.5, dtype=float32)

    Reference: Rezatofighi et al., Generalized IoU, alg. 1, arXiv:1902.09630.
    """
    intersection = _intersection(a, b)
    union = jnp.maximum(area(a) + area(b) - intersection, _EPSILON)
    hull = jnp.maximum(_product(*_hull_sides(a, b)), _EPSILON)
    return intersection / union - (hull - union) / hull


@check_shapes
def diou(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Distance IoU of boxes paired by broadcasting, in [-1, 1].

    The IoU minus the squared distance of the centres over the squared diagonal
    of the hull, so that boxes apart are still drawn together; two equal empty
    boxes have 0.

    >>> diou(jnp.array([0, 0, 2, 2]), jnp.array([2, 0, 4, 2]))
    Array(-0.2, dtype=float32)

    Reference: Zheng et al., Distance-IoU Loss, eq. 7, arXiv:1911.08287.
    """
    ax1, ay1, ax2, ay2 = _corners(a)
    bx1, by1, bx2, by2 = _corners(b)
    # Twice the distance; the 4 below undoes the square of it.
    dx, dy = ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2
    width, height = _hull_sides(a, b)
    diagonal = jnp.maximum(width**2 + height**2, _EPSILON)
    return iou(a, b) - (dx**2 + dy**2) / (4 * diagonal)


@check_shapes
def pairwise_iou(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float[Array, "N M"]:
    """IoU of every box of `a` with every box of `b`.

    >>> pairwise_iou(jnp.array([[0., 0., 2., 2.]]), jnp.array([[0., 0., 2., 1.], [5., 5., 6., 6.]]))
    Array([[0.5, 0. ]], dtype=float32)
    """
    return iou(a[:, None], b[None])


@check_shapes
def pairwise_iof(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float[Array, "N M"]:
    """Intersection over the area of `a`, for every pair.

    >>> pairwise_iof(jnp.array([[0, 0, 2, 2]]), jnp.array([[0, 0, 10, 1], [0, 0, 9, 9]]))
    Array([[0.5, 1. ]], dtype=float32)
    """
    return iof(a[:, None], b[None])


@check_shapes
def pairwise_giou(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float[Array, "N M"]:
    """Generalised IoU of every box of `a` with every box of `b`.

    >>> pairwise_giou(jnp.array([[0, 0, 1, 1]]), jnp.array([[0, 0, 1, 1], [3, 0, 4, 1]]))
    Array([[ 1. , -0.5]], dtype=float32)
    """
    return giou(a[:, None], b[None])


@check_shapes
def xyxy_to_cxcywh(boxes: Real[Array, "*S 4"]) -> Float[Array, "*S 4"]:
    """Corners to centres and sides.

    >>> xyxy_to_cxcywh(jnp.array([0, 2, 4, 8]))
    Array([2., 5., 4., 6.], dtype=float32)
    """
    top_left, bottom_right = jnp.split(boxes.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=-1)


@check_shapes
def cxcywh_to_xyxy(boxes: Real[Array, "*S 4"]) -> Float[Array, "*S 4"]:
    """Centres and sides to corners.

    >>> cxcywh_to_xyxy(jnp.array([2, 5, 4, 6]))
    Array([0., 2., 4., 8.], dtype=float32)
    """
    centre, sides = jnp.split(boxes.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)


@check_shapes
def flip_horizontal(
    boxes: Real[Array, "*S 4"], width: Real[Array, ""] | float
) -> Float[Array, "*S 4"]:
    """Mirrors boxes left to right in an image of `width` pixels, one number.

    >>> flip_horizontal(jnp.array([1, 2, 4, 8]), 10)
    Array([6., 2., 9., 8.], dtype=float32)

    Raises:
        ValueError: if `width` is not one number.
    """
    x1, y1, x2, y2 = _corners(boxes)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


@check_shapes
def flip_vertical(
    boxes: Real[Array, "*S 4"], height: Real[Array, ""] | float
) -> Float[Array, "*S 4"]:
    """Mirrors boxes top to bottom in an image of `height` pixels, one number.

    >>> flip_vertical(jnp.array([1, 2, 4, 9]), 10)
    Array([1., 1., 4., 8.], dtype=float32)

    Raises:
        ValueError: if `height` is not one number.
    """
    x1, y1, x2, y2 = _corners(boxes)
    return jnp.stack([x1, height - y2, x2, height - y1], axis=-1)


@check_shapes
def rescale(boxes: Real[Array, "*S 4"], factor: float) -> Float[Array, "*S 4"]:
    """Boxes of `factor` times the sides about the same centres; clips nothing.

    >>> rescale(jnp.array([2, 2, 4, 6]), 2.0)
    Array([1., 0., 5., 8.], dtype=float32)

    Raises:
        ValueError: if `factor`, which is static, is negative or NaN.
    """
    check_at_least(0, factor=factor)
    centre, sides = jnp.split(xyxy_to_cxcywh(boxes), 2, axis=-1)
    return cxcywh_to_xyxy(jnp.concatenate([centre, factor * sides], axis=-1))


@check_shapes
def has_min_size(
    boxes: Real[Array, "*S 4"], min_size: Real[Array, ""] | float
) -> Bool[Array, "*S"]:
    """True for boxes with both sides of at least `min_size` pixels; never for NaN.

    >>> has_min_size(jnp.array([[0, 0, 4, 4], [0, 0, 9, 3]]), 4)
    Array([ True, False], dtype=bool)

    Raises:
        ValueError: if a static `min_size` is negative or NaN.
    """
    if isinstance(min_size, (int, float)):
        check_at_least(0, min_size=min_size)
    x1, y1, x2, y2 = _corners(boxes)
    return (x2 - x1 >= min_size) & (y2 - y1 >= min_size)


def _intersection(a, b):
    ax1, ay1, ax2, ay2 = _corners(a)
    bx1, by1, bx2, by2 = _corners(b)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    return _product(width, height)


def _hull_sides(a, b):
    ax1, ay1, ax2, ay2 = _corners(a)
    bx1, by1, bx2, by2 = _corners(b)
    return (
        jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1),
        jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1),
    )


def _corners(boxes):
    return jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)


def _product(width, height):
    # XLA may contract w * h + ... into a fused multiply-add in one fusion and not in another;
    # equal overlaps then differ by an ulp. The outer maximum stands between product and sum.
    return jnp.maximum(jnp.maximum(width, 0) * jnp.maximum(height, 0), 0)
