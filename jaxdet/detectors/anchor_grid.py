"""The anchors of a batch of images on one canvas."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops import anchors as anchor_ops


class Anchors(NamedTuple):
    """The anchors of all levels, the same for every image of a batch."""

    boxes: Float[Array, "N 4"]
    valid: Bool[Array, "B N"]  # Of cells that the image covers, not its padding.
    level_sizes: tuple[int, ...]  # They sum to N.


def make_anchors(
    pyramid: Sequence[Float[Array, "B _ _ C"]],
    sizes: Int[Array, "B 2"],
    *,
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    centre: float = 0.0,
    divisor: int,
) -> Anchors:
    """Anchors on every cell of a pyramid, and which of them each image covers.

    Args:
        pyramid: feature maps; only their sizes are read.
        sizes: (height, width) of the images.
        strides: see `ops.anchors.pyramid_anchors`, as `scales`, `ratios` and `centre`.
        scales: sides of the square anchors, in strides.
        ratios: height / width.
        centre: where in a cell its anchors are centred, 0 to 1.
        divisor: an image's sides are rounded up to it; see `ops.anchors.pyramid_valid`.
    """
    feature_sizes = [level.shape[1:3] for level in pyramid]
    boxes = anchor_ops.pyramid_anchors(
        feature_sizes, strides, scales=scales, ratios=ratios, centre=centre
    )
    num_base = len(scales) * len(ratios)
    covered = partial(
        anchor_ops.pyramid_valid, feature_sizes, strides, num_base=num_base, divisor=divisor
    )
    level_sizes = tuple(height * width * num_base for height, width in feature_sizes)
    return Anchors(jnp.asarray(boxes), jax.vmap(covered)(sizes), level_sizes)
