"""Boxes as deltas from anchors or proposals or as offsets in cells, and back.

Reference: Ren et al., Faster R-CNN, eq. 2, arXiv:1506.01497; mmdetection's
DeltaXYWHBBoxCoder for the order of normalising and clamping.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import GridPoints
from jaxdet.ops.contracts import check_shapes

# Sides grow or shrink by at most this factor: exp() of a wild delta stays finite.
MAX_RATIO = 1000 / 16

# Largest log of a side in strides in `decode_grid`, some 10^9 pixels: the square of the box's area,
# which gradients of overlaps hold, is finite in float32 up to a stride of 64.
MAX_LOG_SIDE = 18.0

# Stands for the side of an empty box, so that logs and quotients stay finite.
_MIN_SIDE = 1e-6

# The same for sides in strides: what YOLOX adds before its log.
_MIN_STRIDES = 1e-8


@check_shapes
def encode(
    anchors: Real[Array, "*#S 4"],
    targets: Real[Array, "*#S 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*S 4"]:
    """Deltas (dx, dy, dw, dh) that move `anchors` onto `targets`, normalised.

    Centres move in units of the anchor's sides, sides change by their log.
    Empty boxes give finite values. In float32, whatever comes in.

    >>> encode(jnp.array([0, 0, 10, 20]), jnp.array([5, 0, 15, 20]))
    Array([0.5, 0. , 0. , 0. ], dtype=float32)

    Args:
        anchors: anchors or proposals, paired with `targets` by broadcasting.
        targets: the boxes that they learn.
        means: subtracted from the deltas.
        stds: which the deltas are then divided by, above 0.

    Raises:
        ValueError: if means or stds are not four finite numbers, stds above 0.
    """
    means, stds = _normalisation(means, stds)
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    target_centre, target_sides = _centre_and_sides(targets)
    anchor_sides = jnp.maximum(anchor_sides, _MIN_SIDE)
    shift = (target_centre - anchor_centre) / anchor_sides
    growth = jnp.log(jnp.maximum(target_sides, _MIN_SIDE) / anchor_sides)
    return (jnp.concatenate([shift, growth], axis=-1) - means) / stds


@check_shapes
def decode(
    anchors: Real[Array, "*#S 4"],
    deltas: Real[Array, "*#S 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_ratio: float = MAX_RATIO,
    limit_shrinking: bool = True,
    size: Real[Array, "2"] | None = None,
) -> Float[Array, "*S 4"]:
    """Boxes that `deltas` make of `anchors`; the inverse of `encode`.

    Deltas are de-normalised first, then dw and dh are clamped to
    +-log(`max_ratio`), or from above only; dx and dy are not. Class-specific deltas (N, K, 4) go
    with anchors (N, 1, 4). In float32, whatever comes in.

    >>> decode(jnp.array([0, 0, 10, 20]), jnp.array([0.5, 0.0, 0.0, 0.0]))
    Array([ 5.,  0., 15., 20.], dtype=float32)

    Args:
        anchors: anchors or proposals.
        deltas: normalised deltas.
        means: of the deltas, as given to `encode`.
        stds: of the deltas, as given to `encode`.
        max_ratio: largest change of a side, or its inverse, above 0;
            `math.inf` clamps nothing, as simple-faster-rcnn has it, and leaves
            wild deltas to overflow.
        limit_shrinking: whether sides shrink by no more than that either, as in
            mmdetection; torchvision limits their growth alone.
        size: (height, width) to clip the boxes to; None clips nothing.

    Raises:
        ValueError: if means or stds are not four finite numbers, stds above 0,
            or `max_ratio` is not above 0.
    """
    if not max_ratio > 0:
        raise ValueError(f"max_ratio must be above 0, got {max_ratio}")
    means, stds = _normalisation(means, stds)
    deltas = deltas.astype(jnp.float32) * stds + means
    shift, growth = jnp.split(deltas, 2, axis=-1)
    limit = abs(math.log(max_ratio))
    centre, sides = _centre_and_sides(anchors)
    centre = centre + shift * sides
    sides = sides * jnp.exp(jnp.clip(growth, -limit if limit_shrinking else None, limit))
    decoded = box_ops.cxcywh_to_xyxy(jnp.concatenate([centre, sides], axis=-1))
    return decoded if size is None else box_ops.clip(decoded, size)


@check_shapes
def encode_grid(points: GridPoints, targets: Real[Array, "N 4"]) -> Float[Array, "N 4"]:
    """What a network without anchors would predict at each point for its target.

    Offsets (x, y) of the centre from the cell's top left corner and the logs of
    width and height, all in strides; the targets of YOLOX's L1 loss. Empty
    boxes give finite values: a side of 0 is about -18.4.

    >>> encode_grid(GridPoints(jnp.array([[12, 4]]), jnp.array([8])), jnp.array([[8, 0, 16, 8]]))
    Array([[0.5, 0.5, 0. , 0. ]], dtype=float32)

    Args:
        points: centres and strides, in pixels, as `anchors.grid_points` gives them.
        targets: the box of each, with no negative side.

    Raises:
        ValueError: if there is not one point for each box.

    Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430; its get_l1_target.
    """
    corners, strides = _cells(points, targets)
    centre, sides = _centre_and_sides(targets)
    return jnp.concatenate(
        [(centre - corners) / strides, jnp.log(sides / strides + _MIN_STRIDES)], axis=-1
    )


@check_shapes
def decode_grid(points: GridPoints, offsets: Real[Array, "N 4"]) -> Float[Array, "N 4"]:
    """Boxes that a network without anchors predicts; the inverse of `encode_grid`.

    (x, y) in strides from the cell's top left corner is the box's centre, the
    exponential of (w, h) its sides in strides. w and h above MAX_LOG_SIDE are
    taken for that, and get no gradient: all is finite. In float32, whatever
    comes in.

    >>> decode_grid(GridPoints(jnp.array([[12, 4]]), jnp.array([8])), jnp.array([[0.5, 0.5, 0, 0]]))
    Array([[ 8.,  0., 16.,  8.]], dtype=float32)

    Args:
        points: centres and strides, in pixels, as `anchors.grid_points` gives them.
        offsets: raw output of a head at each point.

    Raises:
        ValueError: if there is not one point for each row.

    Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430; its decode_outputs.
    """
    corners, strides = _cells(points, offsets)
    shift, growth = jnp.split(offsets.astype(jnp.float32), 2, axis=-1)
    centre = shift * strides + corners
    sides = jnp.exp(jnp.minimum(growth, MAX_LOG_SIDE)) * strides
    return box_ops.cxcywh_to_xyxy(jnp.concatenate([centre, sides], axis=-1))


def _cells(points, rows):
    """Top left corners (N, 2) and strides (N, 1) of points, one for each row."""
    if points.centres.shape != (len(rows), 2) or points.strides.shape != (len(rows),):
        raise ValueError(
            f"{len(rows)} boxes, but points with centres of the shape {points.centres.shape} "
            f"and strides of {points.strides.shape}"
        )
    strides = points.strides.astype(jnp.float32)[:, None]
    return points.centres.astype(jnp.float32) - strides / 2, strides


def _centre_and_sides(boxes):
    return jnp.split(box_ops.xyxy_to_cxcywh(boxes), 2, axis=-1)


def _normalisation(means, stds):
    for name, values in (("means", means), ("stds", stds)):
        if len(values) != 4 or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} must be four finite numbers, got {values}")
    if not min(stds) > 0:
        raise ValueError(f"stds must be above 0, got {stds}")
    return jnp.array(means, jnp.float32), jnp.array(stds, jnp.float32)
