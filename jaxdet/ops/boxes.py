"""Box geometry: areas, overlaps, formats and flips.

Boxes are [x1, y1, x2, y2] in pixels, x2 and y2 exclusive. Overlaps are
computed in float32 whatever comes in.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

# Keeps 0 / 0 out of overlaps of empty boxes, as the reference does (bbox_overlaps, eps).
_EPSILON = 1e-6


def area(boxes: Real[Array, "*S 4"]) -> Float[Array, "*S"]:
    """Areas in square pixels; a box with a negative side has area 0."""
    x1, y1, x2, y2 = _corners(boxes)
    return _product(x2 - x1, y2 - y1)


def clip(boxes: Float[Array, "*S 4"], size: Real[Array, "2"]) -> Float[Array, "*S 4"]:
    """Moves corners outside an image of `size` (height, width) to its border."""
    height, width = size[0], size[1]
    limits = jnp.stack([width, height, width, height]).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limits)


def iou(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Intersection over union of boxes paired by broadcasting, in [0, 1].

    Two empty boxes have IoU 0. Jitted and eager results are equal bit for bit,
    so that ties survive `==` (see `_product`).
    """
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    return intersection / jnp.maximum(union, _EPSILON)


def iof(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Intersection over the area of `a` (the foreground), paired by broadcasting, in [0, 1]."""
    return _intersection(a, b) / jnp.maximum(area(a), _EPSILON)


def giou(a: Real[Array, "*#S 4"], b: Real[Array, "*#S 4"]) -> Float[Array, "*S"]:
    """Generalised IoU of boxes paired by broadcasting, in [-1, 1].

    Reference: Rezatofighi et al., Generalized IoU, alg. 1, arXiv:1902.09630.
    """
    intersection = _intersection(a, b)
    union = jnp.maximum(area(a) + area(b) - intersection, _EPSILON)
    hull = jnp.maximum(_hull(a, b), _EPSILON)
    return intersection / union - (hull - union) / hull


def pairwise_iou(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float[Array, "N M"]:
    """IoU of every box of `a` with every box of `b`.

    >>> pairwise_iou(jnp.array([[0., 0., 2., 2.]]), jnp.array([[0., 0., 2., 1.], [5., 5., 6., 6.]]))
    Array([[0.5, 0. ]], dtype=float32)
    """
    return iou(a[:, None], b[None])


def pairwise_iof(a: Real[Array, "N 4"], b: Real[Array, "M 4"]) -> Float[Array, "N M"]:
    """Intersection over the area of `a`, for every pair."""
    return iof(a[:, None], b[None])


def xyxy_to_cxcywh(boxes: Float[Array, "*S 4"]) -> Float[Array, "*S 4"]:
    """Corners to centres and sides."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=-1)


def cxcywh_to_xyxy(boxes: Float[Array, "*S 4"]) -> Float[Array, "*S 4"]:
    """Centres and sides to corners."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)


def flip_horizontal(boxes: Float[Array, "*S 4"], width: Real[Array, ""] | float):
    """Mirrors boxes left to right in an image of `width`; `Float[Array, "*S 4"]`."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([width - x2, y1, width - x1, y2], axis=-1)


def _intersection(a, b):
    ax1, ay1, ax2, ay2 = _corners(a)
    bx1, by1, bx2, by2 = _corners(b)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    return _product(width, height)


def _hull(a, b):
    ax1, ay1, ax2, ay2 = _corners(a)
    bx1, by1, bx2, by2 = _corners(b)
    width = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    height = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
    return _product(width, height)


def _corners(boxes):
    return jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)


def _product(width, height):
    # XLA may contract w * h + ... into a fused multiply-add in one fusion and not in another;
    # equal overlaps then differ by an ulp. The outer maximum stands between product and sum.
    return jnp.maximum(jnp.maximum(width, 0) * jnp.maximum(height, 0), 0)
