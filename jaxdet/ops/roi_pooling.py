"""RoIAlign and its older sibling RoIPool, over one map or a whole pyramid.

RoIAlign averages samples, in a fixed number or as many as a region has cells.
Bilinear interpolation is separable: on each axis the samples of a region touch
a few lines of its map, and a matrix takes these to the output bins. Samples
change the matrices only; what is read are cells.

RoIPool takes the largest value in each bin of a region, both rounded to whole
cells, as Fast R-CNN and the VGG detectors have it.

Reference: He et al., Mask R-CNN, sec. 3, arXiv:1703.06870; mmcv 1.3,
RoIAlign with `aligned`; Lin et al., FPN, eq. 1, arXiv:1612.03144. Girshick,
Fast R-CNN, sec. 2.1, arXiv:1504.08083; torchvision's and mmcv's RoIPool for
the rounding.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxdet.ops import _interpolation
from jaxdet.ops._interpolation import axis, interpolate
from jaxdet.ops._largest_cells import bin_edges, largest_cells, round_corners
from jaxdet.ops.contracts import check_at_least, check_shapes

ADAPTIVE = _interpolation.ADAPTIVE


class FlatPyramid(NamedTuple):
    """The maps of a pyramid as one list of cells, so that one gather reads from all of them.

    Attributes:
        cells: of all levels, finest first, row after row; M in all.
        heights: rows of each level.
        widths: columns of each level.
        offsets: place of each level's first cell.
    """

    cells: Float[Array, "M C"]
    heights: Int[Array, " L"]
    widths: Int[Array, " L"]
    offsets: Int[Array, " L"]


@check_shapes
def map_levels(
    rois: Real[Array, "P 4"], *, num_levels: int, finest_scale: float = 56.0
) -> Int[Array, " P"]:
    """The pyramid level that each region is read from, 0..num_levels-1.

    Regions of a side below 2 `finest_scale` (square root of the area) go to
    level 0; each doubling is one level more. Empty regions go to level 0.

    Raises:
        ValueError: if `num_levels` is below 1 or the scale is not positive.

    Reference: Lin et al., FPN, eq. 1, arXiv:1612.03144, as mmdetection has it.

    >>> map_levels(jnp.array([[0, 0, 100, 100], [0, 0, 112, 112], [0, 0, 900, 900]]), num_levels=4)
    Array([0, 1, 3], dtype=int32)
    """
    check_at_least(1, num_levels=num_levels)
    if not finest_scale > 0:
        raise ValueError(f"finest_scale must be positive, got {finest_scale}")
    rois = rois.astype(jnp.float32)
    sides = jnp.maximum(rois[:, 2:] - rois[:, :2], 0)
    scale = jnp.sqrt(sides[:, 0] * sides[:, 1])
    # 1e-6 as the reference has it: exact powers of two must not fall a level lower.
    level = jnp.floor(jnp.log2(scale / finest_scale + 1e-6))
    return jnp.clip(level, 0, num_levels - 1).astype(jnp.int32)


@check_shapes
def roi_align(
    features: Float[Array, "H W C"],
    rois: Real[Array, "P 4"],
    *,
    stride: float,
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = ADAPTIVE,
    max_sampling: int = 6,
    aligned: bool = True,
) -> Float[Array, "P h w C"]:
    """RoIAlign on one feature map; the arguments are those of `pyramid_roi_align`.

    >>> columns = jnp.broadcast_to(jnp.arange(8.0)[:, None], (4, 8, 1))
    >>> roi_align(columns, jnp.array([[0, 0, 32, 16]]), stride=4, output_size=2)[0, :, :, 0]
    Array([[1.5, 5.5],
           [1.5, 5.5]], dtype=float32)
    """
    return pyramid_roi_align(
        (features,),
        rois,
        strides=(stride,),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        max_sampling=max_sampling,
        aligned=aligned,
    )


@check_shapes
def pyramid_roi_align(
    pyramid: Sequence[Float[Array, "_h _w C"]],
    rois: Real[Array, "P 4"],
    *,
    strides: Sequence[float],
    finest_scale: float = 56.0,
    output_size: int | tuple[int, int] = 7,
    sampling_ratio: int = ADAPTIVE,
    max_sampling: int = 6,
    aligned: bool = True,
) -> Float[Array, "P h w C"]:
    """Pools each region from its level of the pyramid to a fixed grid of bins.

    A bin is the mean of sampling_ratio x sampling_ratio bilinear samples. With
    adaptive sampling it is ceil(cells a bin) an axis, so every cell is read;
    this is exact for regions of up to `max_sampling` cells a bin, and larger
    ones interpolate between as many cells, evenly spread. Samples more than
    one cell outside the map are 0. An empty region gives 0 with adaptive
    sampling. No gradient flows to the regions.

    Args:
        pyramid: maps of one image, finest first.
        rois: regions in image pixels; any finite or infinite values.
        strides: pixels a cell, of each map; finer first.
        finest_scale: see `map_levels`.
        output_size: bins an axis, or (height, width).
        sampling_ratio: samples a bin and axis, or ADAPTIVE (0).
        max_sampling: cap on the samples of adaptive sampling.
        aligned: shift by half a cell, so that cell centres are at integers.

    Raises:
        ValueError: if the numbers of maps and strides differ, or a setting is
            out of range.

    >>> pyramid = jnp.zeros((16, 16, 1)), jnp.ones((8, 8, 1))
    >>> rois = jnp.array([[0, 0, 8, 8], [0, 0, 32, 32]])
    >>> pyramid_roi_align(pyramid, rois, strides=(4, 8), finest_scale=8, output_size=1).ravel()
    Array([0., 1.], dtype=float32)
    """
    check_at_least(0, sampling_ratio=sampling_ratio)
    check_at_least(1, max_sampling=max_sampling)
    bins = bins_of(output_size)
    cells, heights, widths, _ = flatten_pyramid(pyramid, strides)
    corners, level = _in_cells(rois, strides, finest_scale)
    corners -= 0.5 if aligned else 0.0
    settings = dict(ratio=sampling_ratio, cap=max_sampling, min_length=0.0 if aligned else 1.0)
    sizes = tuple(level.shape[:2] for level in pyramid)
    longest = [max(side) for side in zip(*sizes, strict=True)]
    y = axis(corners[:, 1], corners[:, 3], heights[level], bins[0], longest[0], **settings)
    x = axis(corners[:, 0], corners[:, 2], widths[level], bins[1], longest[1], **settings)
    return interpolate(cells, level, y, x, sizes=sizes)


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
        finest_scale: see `map_levels`.
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
    corners, level = _in_cells(rois, strides, finest_scale)
    corners = round_corners(corners)
    rows = bin_edges(corners[:, 1], corners[:, 3], heights[level], bins[0])
    columns = bin_edges(corners[:, 0], corners[:, 2], widths[level], bins[1])
    largest, empty = largest_cells(cells, rows, columns, offsets[level], widths[level])
    # Read as float32: the gradient sums many regions into a cell, in this type.
    pooled = jnp.take_along_axis(
        cells.astype(jnp.float32), largest.reshape(-1, cells.shape[1]), axis=0
    ).reshape(largest.shape)
    return jnp.where(empty[..., None], 0, pooled).astype(cells.dtype)


@check_shapes
def flatten_pyramid(
    pyramid: Sequence[Float[Array, "_h _w C"]], strides: Sequence[float]
) -> FlatPyramid:
    """Lays the cells of all maps, finest first, behind one another.

    Warns of maps that look as if their channels came first, as PyTorch has them: of shapes
    such as (256, 50, 68), which no image makes that is not several times as high as wide.

    Raises:
        ValueError: if the numbers of maps and strides differ, there is none, or
            a stride is not positive.

    >>> flatten_pyramid([jnp.zeros((4, 6, 3)), jnp.zeros((2, 3, 3))], (8, 16)).offsets
    Array([ 0, 24], dtype=int32)
    """
    if len(pyramid) != len(strides) or not pyramid:
        raise ValueError(f"{len(pyramid)} feature maps but {len(strides)} strides: {strides}")
    if not all(stride > 0 for stride in strides):
        raise ValueError(f"strides must be positive, got {strides}")
    channels = pyramid[0].shape[-1]
    first, *others = pyramid[0].shape
    if first >= 64 and first % 16 == 0 and first >= 2 * max(others):
        warnings.warn(
            f"maps want the shape (height, width, channels), found {pyramid[0].shape}, which looks "
            "like channels first",
            stacklevel=4,
        )
    cells = jnp.concatenate([level.reshape(-1, channels) for level in pyramid])
    heights, widths = (jnp.array([level.shape[axis] for level in pyramid]) for axis in (0, 1))
    sizes = heights * widths
    return FlatPyramid(cells, heights, widths, jnp.cumsum(sizes) - sizes)


def bins_of(output_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in bins; one number stands for both.

    Raises:
        ValueError: if one is below 1.

    >>> bins_of(7)
    (7, 7)
    """
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if min(bins) < 1:
        raise ValueError(f"output_size must be at least 1, got {output_size}")
    return bins


def _in_cells(rois, strides, finest_scale):
    """Corners of each region in cells of the map that it is read from, and the level of that."""
    rois = jnp.nan_to_num(jax.lax.stop_gradient(rois).astype(jnp.float32))
    level = map_levels(rois, num_levels=len(strides), finest_scale=finest_scale)
    return rois / jnp.array(strides, jnp.float32)[level, None], level
