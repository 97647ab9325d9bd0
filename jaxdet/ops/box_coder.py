"""Boxes as deltas from anchors or proposals, and back.

Reference: Ren et al., Faster R-CNN, eq. 2, arXiv:1506.01497; mmdetection's
DeltaXYWHBBoxCoder for the order of normalising and clamping.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxdet.ops import boxes as box_ops

# Sides grow or shrink by at most this factor: exp() of a wild delta stays finite.
MAX_RATIO = 1000 / 16

# Stands for the side of an empty box, so that logs and quotients stay finite.
_MIN_SIDE = 1e-6


def encode(
    anchors: Real[Array, "*S 4"],
    targets: Real[Array, "*S 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*S 4"]:
    """Deltas (dx, dy, dw, dh) that move `anchors` onto `targets`, normalised.

    Centres move in units of the anchor's sides, sides change by their log.
    Empty boxes give finite values.
    """
    anchor = box_ops.xyxy_to_cxcywh(anchors.astype(jnp.float32))
    target = box_ops.xyxy_to_cxcywh(targets.astype(jnp.float32))
    anchor_sides = jnp.maximum(anchor[..., 2:], _MIN_SIDE)
    target_sides = jnp.maximum(target[..., 2:], _MIN_SIDE)
    shift = (target[..., :2] - anchor[..., :2]) / anchor_sides
    growth = jnp.log(target_sides / anchor_sides)
    deltas = jnp.concatenate([shift, growth], axis=-1)
    return (deltas - jnp.array(means)) / jnp.array(stds)


def decode(
    anchors: Real[Array, "*#S 4"],
    deltas: Real[Array, "*#S 4"],
    *,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_ratio: float = MAX_RATIO,
    size: Real[Array, "2"] | None = None,
) -> Float[Array, "*S 4"]:
    """Boxes that `deltas` make of `anchors`; the inverse of `encode`.

    Deltas are de-normalised first, then dw and dh are clamped to
    +-log(`max_ratio`); dx and dy are not. Class-specific deltas (N, K, 4) go
    with anchors (N, 1, 4).

    Args:
        anchors: anchors or proposals.
        deltas: normalised deltas.
        means: of the deltas, as given to `encode`.
        stds: of the deltas, as given to `encode`.
        max_ratio: largest change of a side, above 1 or its inverse.
        size: (height, width) to clip the boxes to; None clips nothing.
    """
    limit = abs(math.log(max_ratio))
    deltas = deltas.astype(jnp.float32) * jnp.array(stds) + jnp.array(means)
    anchor = box_ops.xyxy_to_cxcywh(anchors.astype(jnp.float32))
    sides = anchor[..., 2:] * jnp.exp(jnp.clip(deltas[..., 2:], -limit, limit))
    centre = anchor[..., :2] + deltas[..., :2] * anchor[..., 2:]
    decoded = box_ops.cxcywh_to_xyxy(jnp.concatenate([centre, sides], axis=-1))
    return decoded if size is None else box_ops.clip(decoded, size)
