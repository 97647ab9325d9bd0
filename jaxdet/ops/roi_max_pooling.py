"""RoIPool over one map or a whole pyramid: the largest value in each bin of a region.

Region and bins are rounded to whole cells, as Fast R-CNN and the VGG detectors
have it. `roi_pooling` has RoIAlign, which rounds nothing.

Reference: Girshick, Fast R-CNN, sec. 2.1, arXiv:1504.08083; torchvision's and
mmcv's RoIPool for the rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxdet.ops.checks import check_shapes
from jaxdet.ops.roi_pooling import bins_of, flatten_pyramid, map_levels

# Corners are integers in float32 up to here; nothing reads a map so large.
_FARTHEST = 2.0**24


@check_shapes
def roi_pool(
    features: Float[Array, "H W C"],
    rois: Real[Array, "P 4"],
    *,
    stride: float,
    output_size: int | tuple[int, int] = 7,
) -> Float[Array, "P h w C"]:
    """RoIPool on one feature map; the arguments are those of `pyramid_roi_pool`.

    >>> cells = jnp.arange(16.0).reshape(4, 4, 1)
    >>> roi_pool(cells, jnp.array([[0, 0, 30, 14]]), stride=10, output_size=2)[0, :, :, 0]
    Array([[1., 3.],
           [5., 7.]], dtype=float32)
    """
    return pyramid_roi_pool((features,), rois, strides=(stride,), output_size=output_size)


@check_shapes
def pyramid_roi_pool(
    pyramid: Sequence[Float[Array, "_h _w C"]],
    rois: Real[Array, "P 4"],
    *,
    strides: Sequence[float],
    finest_scale: float = 56.0,
    output_size: int | tuple[int, int] = 7,
) -> Float[Array, "P h w C"]:
    """Takes each region's bins from its level of the pyramid, the largest cell of each.

    Corners are divided by the stride and rounded to cells, halves away from 0;
    both ends belong to the region, which is at least one cell. A bin reaches
    from the floor of its start to the ceiling of its end, so that neighbours
    may share cells. What lies outside the map is cut off; a bin with nothing
    left is 0. Exact for regions of any size: the time grows with the cells of
    the largest bin, the memory does not.

    The gradient goes to the largest cell of a bin, the first of equal ones. No
    gradient flows to the regions. Bin edges are computed in integers; the
    reference's float32 reaches a cell too far at a few sides, such as 57 cells
    in 7 bins.

    Args:
        pyramid: maps of one image, finest first.
        rois: regions in image pixels; any finite or infinite values.
        strides: pixels a cell, of each map; finer first.
        finest_scale: see `roi_pooling.map_levels`.
        output_size: bins an axis, or (height, width).

    Raises:
        ValueError: if the numbers of maps and strides differ, or a setting is
            out of range.

    >>> pyramid = jnp.zeros((16, 16, 1)), jnp.ones((8, 8, 1))
    >>> rois = jnp.array([[0, 0, 8, 8], [0, 0, 32, 32]])
    >>> pyramid_roi_pool(pyramid, rois, strides=(4, 8), finest_scale=8, output_size=1).ravel()
    Array([0., 1.], dtype=float32)
    """
    bins = bins_of(output_size)
    cells, heights, widths, offsets = flatten_pyramid(pyramid, strides)
    rois = jnp.nan_to_num(jax.lax.stop_gradient(rois).astype(jnp.float32))
    level = map_levels(rois, num_levels=len(pyramid), finest_scale=finest_scale)
    corners = _round(rois / jnp.array(strides, jnp.float32)[level, None])
    rows = _bin_edges(corners[:, 1], corners[:, 3], heights[level], bins[0])
    columns = _bin_edges(corners[:, 0], corners[:, 2], widths[level], bins[1])
    largest, empty = _largest_cells(cells, rows, columns, offsets[level], widths[level])
    # Read as float32: the gradient sums many regions into a cell, in this type.
    pooled = jnp.take_along_axis(
        cells.astype(jnp.float32), largest.reshape(-1, cells.shape[1]), axis=0
    ).reshape(largest.shape)
    return jnp.where(empty[..., None], 0, pooled).astype(cells.dtype)


def _round(values: Float[Array, "P 4"]) -> Int[Array, "P 4"]:
    """Rounds halves away from 0; adding .5 and cutting would round .49999997 up."""
    values = jnp.clip(values, -_FARTHEST, _FARTHEST)
    whole = jnp.trunc(values)
    away = jnp.abs(values - whole) >= 0.5
    return (whole + jnp.where(away, jnp.sign(values), 0)).astype(jnp.int32)


def _bin_edges(
    start: Int[Array, " P"], end: Int[Array, " P"], size: Int[Array, " P"], bins: int
) -> tuple[Int[Array, "P O"], Int[Array, "P O"]]:
    """First line of each bin, and the one behind its last, inside a map of `size` lines."""
    length = jnp.maximum(end - start + 1, 1)[:, None]
    bin_ = jnp.arange(bins)
    # bin * length / bins in two parts: the product would overflow for garbage regions.
    whole, rest = length // bins, length % bins
    first = bin_ * whole + bin_ * rest // bins
    behind = (bin_ + 1) * whole - (-(bin_ + 1) * rest // bins)
    edges = (start[:, None] + edge for edge in (first, behind))
    return tuple(jnp.clip(edge, 0, size[:, None]) for edge in edges)


def _largest_cells(cells, rows, columns, offset, width):
    """The place of each bin's largest cell (P, h, w, C), and which bins are empty (P, h, w).

    One cell of every bin a step; small bins look at their last cell again.
    """
    cells = jax.lax.stop_gradient(cells)
    (top, bottom), (left, right) = rows, columns
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None]
    num_columns = jnp.maximum(jnp.max(right - left), 1)
    num_steps = jnp.max(bottom - top) * num_columns

    def place(step):
        y = jnp.minimum(top + step // num_columns, bottom - 1)
        x = jnp.minimum(left + step % num_columns, right - 1)
        index = offset[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None]
        return jnp.where(empty, 0, index)

    def look(state):
        step, best, largest = state
        index = place(step)
        seen = cells[index]
        better = seen > best
        return (
            step + 1,
            jnp.where(better, seen, best),
            jnp.where(better, index[..., None], largest),
        )

    index = place(0)
    largest = jnp.broadcast_to(index[..., None], (*index.shape, cells.shape[1]))
    state = (jnp.array(1), cells[index], largest)
    _, _, largest = jax.lax.while_loop(lambda state: state[0] < num_steps, look, state)
    return largest, empty
