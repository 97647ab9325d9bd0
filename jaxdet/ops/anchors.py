"""Anchor boxes of a feature pyramid and their masks.

Sizes and strides are static, so anchors are NumPy arrays: constants under jit.
Anchors run over levels, then y, then x, then ratio, then scale.

Reference: mmdetection 2.11, AnchorGenerator and anchor_inside_flags.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


def base_anchors(
    stride: int, *, scales: Sequence[float], ratios: Sequence[float]
) -> Float[np.ndarray, "A 4"]:
    """Anchors of one cell, centred at 0, not rounded; ratio-major, then scale.

    Args:
        stride: pixels a cell; times a scale it is the side of the square anchor.
        scales: sides in strides.
        ratios: height / width, at equal area.
    """
    root = np.sqrt(np.asarray(ratios, np.float64))
    sides = stride * np.asarray(scales, np.float64)
    heights = (root[:, None] * sides).ravel()
    widths = (sides / root[:, None]).ravel()
    corners = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
    return corners.astype(np.float32)


def grid_anchors(
    base: Float[np.ndarray, "A 4"], feature_size: tuple[int, int], stride: int
) -> Float[np.ndarray, "N 4"]:
    """Base anchors at the corner of every cell of a map of (height, width) cells."""
    height, width = feature_size
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def pyramid_anchors(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    scales: Sequence[float],
    ratios: Sequence[float],
) -> Float[np.ndarray, "N 4"]:
    """Anchors of all levels, concatenated.

    Raises:
        ValueError: if the numbers of feature sizes and strides differ.
    """
    _check_levels(feature_sizes, strides)
    levels = [
        grid_anchors(base_anchors(stride, scales=scales, ratios=ratios), feature_size, stride)
        for feature_size, stride in zip(feature_sizes, strides, strict=True)
    ]
    return np.concatenate(levels)


def pyramid_valid(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size: Int[Array, "2"],
    *,
    num_base: int,
    divisor: int = 32,
) -> Bool[Array, " N"]:
    """True for anchors of cells that the image itself covers, not the canvas padding.

    Args:
        feature_sizes: (height, width) in cells, of the padded canvas.
        strides: pixels a cell.
        size: (height, width) of the content in pixels; rounded up to `divisor`,
            as the reference pads each image.
        num_base: anchors a cell.
        divisor: what the reference pads an image's sides to.

    Raises:
        ValueError: if the numbers of feature sizes and strides differ.
    """
    _check_levels(feature_sizes, strides)
    padded = -(-size // divisor) * divisor
    levels = []
    for (height, width), stride in zip(feature_sizes, strides, strict=True):
        cells = -(-padded // stride)
        covered = (np.arange(height)[:, None] < cells[0]) & (np.arange(width) < cells[1])
        levels.append(jnp.repeat(covered.ravel(), num_base))
    return jnp.concatenate(levels)


def inside_image(
    anchors: Shaped[Array | np.ndarray, "N 4"], size: Int[Array, "2"], *, allowed_border: float = 0
) -> Bool[Array, " N"]:
    """True for anchors that reach at most `allowed_border` pixels outside an image.

    Left and top compare with >=, right and bottom with <, as the reference
    does. A negative border lets every anchor pass.
    """
    if allowed_border < 0:
        return jnp.ones(anchors.shape[0], bool)
    x1, y1, x2, y2 = jnp.moveaxis(jnp.asarray(anchors), -1, 0)
    not_before = (x1 >= -allowed_border) & (y1 >= -allowed_border)
    not_after = (x2 < size[1] + allowed_border) & (y2 < size[0] + allowed_border)
    return not_before & not_after


def _check_levels(feature_sizes, strides):
    if len(feature_sizes) != len(strides):
        raise ValueError(f"{len(feature_sizes)} feature maps but {len(strides)} strides: {strides}")
