"""What RoIAlign computes: weighted sums of map cells, and their gradient.

Bilinear interpolation is separable. On each axis a region reads some lines of
its map, and a matrix takes them to bins (`Axis`); a bin of the region is the
sum over both. That is linear in the cells, and here it is done in two ways,
equal but for rounding:

*   CPU: a bin sums its own few cells, which nothing holds in between; the
    gradient adds square windows of a map, each the product of a region's
    gradient with both matrices. Loops run as long as regions are large.
*   Elsewhere: all cells of some regions are gathered, two products follow; the
    gradient scatters. Loops have fixed lengths, as these devices want it.

Reference: He et al., Mask R-CNN, sec. 3, arXiv:1703.06870.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ADAPTIVE = 0

# Regions that a device works on together. Elsewhere they bound the memory: 128 regions gather
# 250 MB of float32 at 44 x 44 cells and 256 channels. On a CPU their sums stay in its cache.
REGIONS_AT_ONCE = 128
REGIONS_AT_ONCE_ON_CPU = 4
# On a CPU: lines of a bin summed without touching memory, and the side of the gradient's windows.
LINES_A_STEP = 4
WINDOW = 16

# "highest": accelerators would round float32 factors to fewer bits.
_product = partial(jnp.einsum, precision="highest")


class Axis(NamedTuple):
    """What RoIAlign reads on one axis of every region: `lines` of its map, weighed into bins."""

    lines: Int[Array, "P T"]
    weights: Float[Array, "P O T"]


def axis(start, end, size, bins, longest, *, ratio, cap, min_length) -> Axis:
    """Lines and weights of one axis; all in cells of each region's own map.

    `longest` is the largest `size` of any map: no region needs more lines.
    """
    length = jnp.maximum(end - start, min_length)
    most = cap if ratio == ADAPTIVE else ratio
    # Adaptive: as many samples as a bin has cells, none for an empty region.
    count = jnp.ceil(length / bins) if ratio == ADAPTIVE else jnp.full_like(length, ratio)
    count = jnp.minimum(count, most)[:, None, None]
    sample = jnp.arange(most)
    fraction = (sample + 0.5) / jnp.maximum(count, 1)
    step = length[:, None, None] / bins
    position = start[:, None, None] + (jnp.arange(bins)[:, None] + fraction) * step
    limit = size[:, None, None]
    used = (sample < count) & (position >= -1) & (position <= limit)
    share = used / jnp.maximum(count, 1)
    position = jnp.clip(position, 0, limit - 1)  # (P, bins, most)
    if ratio == ADAPTIVE:
        num_lines = min(bins * cap + 2, longest + 1)
        lines, weights = _evenly_spaced_lines(position, share, num_lines)
    else:
        lines, weights = _lines_beside_samples(position, share)
    return Axis(jnp.clip(lines, 0, size[:, None] - 1).astype(jnp.int32), weights)


def _evenly_spaced_lines(position, share, num_lines):
    """Lines from the first cell to the last, more than one apart only if they would not suffice."""
    first = jnp.floor(jnp.min(position, axis=(1, 2)))
    last = jnp.ceil(jnp.max(jnp.where(share > 0, position, 0), axis=(1, 2)))
    spacing = jnp.maximum((last - first) / (num_lines - 1), 1)[:, None]
    lines = jnp.floor(first[:, None] + spacing * jnp.arange(num_lines) + 0.5)  # (P, T)
    # A sample is interpolated between the lines beside it, whatever their gap.
    gap = jnp.diff(lines)
    before = jnp.pad(gap, ((0, 0), (1, 0)), constant_values=1)[:, None, None]
    after = jnp.pad(gap, ((0, 0), (0, 1)), constant_values=1)[:, None, None]
    offset = position[..., None] - lines[:, None, None]
    hat = jnp.maximum(1 - jnp.maximum(offset / after, -offset / before), 0)
    return lines, jnp.sum(hat * share[..., None], axis=2)


def _lines_beside_samples(position, share):
    """The two lines beside every sample."""
    num_rois, bins, count = position.shape
    below = jnp.floor(position)
    above_weight = position - below
    weights = jnp.stack([1 - above_weight, above_weight], axis=-1) * share[..., None]
    lines = jnp.stack([below, below + 1], axis=-1)
    own_bin = jnp.eye(bins)[:, :, None, None]  # Lines of another bin weigh nothing.
    weights = (weights[:, None] * own_bin).reshape(num_rois, bins, bins * count * 2)
    return lines.reshape(num_rois, -1), weights


def interpolate(
    cells: Float[Array, "M C"],
    level: Int[Array, " P"],
    y: Axis,
    x: Axis,
    *,
    sizes: tuple[tuple[int, int], ...],
) -> Float[Array, "P h w C"]:
    """The bins of every region: cells of its level, weighed on both axes.

    Differentiable in the cells alone, once, and in reverse mode. `vmap` on a
    CPU goes through its axis one after the other.

    Args:
        cells: of all levels, row after row, as `FlatPyramid` has them.
        level: that each region reads.
        y: lines and weights of its rows.
        x: of its columns.
        sizes: (height, width) of each level.
    """
    return _interpolate(sizes, cells, level, y, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _interpolate(sizes, cells, level, y, x):
    rows = _rows(sizes, level, y)
    on_cpu = jax.custom_batching.sequential_vmap(_sum_cells)
    return jax.lax.platform_dependent(cells, rows, y, x, cpu=on_cpu, default=_gather_and_multiply)


def _forward(sizes, cells, level, y, x):
    return _interpolate(sizes, cells, level, y, x), (level, y, x)


def _backward(sizes, residuals, gradient):
    on_cpu = jax.custom_batching.sequential_vmap(partial(_add_windows, sizes))
    elsewhere = partial(_multiply_and_scatter, sizes)
    cells = jax.lax.platform_dependent(gradient, *residuals, cpu=on_cpu, default=elsewhere)
    return cells.astype(gradient.dtype), None, None, None


_interpolate.defvjp(_forward, _backward)


def _rows(sizes, level, y):
    """Where each line of a region begins in the list of all cells, (P, T)."""
    heights, widths = jnp.array(sizes).T
    begins = jnp.cumsum(heights * widths) - heights * widths
    return begins[level, None] + y.lines * widths[level, None]


def _gather_and_multiply(cells, rows, y, x):
    def pool(part):
        rows, columns, y_weights, x_weights = part
        # Gathered as float32, as the gradient is summed: a chip may do both alike.
        patches = cells.astype(jnp.float32)[rows[:, :, None] + columns[:, None, :]]
        lines = _product(
            "pot,ptuc->pouc", y_weights.astype(cells.dtype), patches.astype(cells.dtype)
        )
        return _product("pqu,pouc->poqc", x_weights.astype(cells.dtype), lines)

    return _join(jax.lax.map(pool, _split((rows, x.lines, y.weights, x.weights))), len(rows))


def _multiply_and_scatter(sizes, gradient, level, y, x):
    def add(cells, part):
        rows, columns, y_weights, x_weights, gradient = part
        lines = _product("pqu,poqc->pouc", x_weights.astype(gradient.dtype), gradient)
        patches = _product("pot,pouc->ptuc", y_weights.astype(gradient.dtype), lines)
        # Many regions are summed into a cell, hence in float32.
        places = rows[:, :, None] + columns[:, None, :]
        return cells.at[places].add(patches.astype(jnp.float32)), None

    parts = _split((_rows(sizes, level, y), x.lines, y.weights, x.weights, gradient))
    num_cells = sum(height * width for height, width in sizes)
    cells, _ = jax.lax.scan(add, jnp.zeros((num_cells, gradient.shape[-1])), parts)
    return cells


def _sum_cells(cells, rows, y, x):
    """Sums LINES_A_STEP x LINES_A_STEP cells of each bin at a time, as long as any has more."""

    def pool(part):
        rows, columns, *weights = part
        (y_first, y_count), (x_first, x_count) = (_used(w) for w in weights)
        x_steps = -(-jnp.max(x_count) // LINES_A_STEP)
        y_steps = -(-jnp.max(y_count) // LINES_A_STEP)

        def add(step, bins):
            top = y_first + step // x_steps * LINES_A_STEP
            left = x_first + step % x_steps * LINES_A_STEP
            beside = [_line(columns, weights[1], left + k) for k in range(LINES_A_STEP)]
            for k in range(LINES_A_STEP):
                row, weight = _line(rows, weights[0], top + k)
                found = sum(
                    share[:, None, :, None] * _read(cells, row[:, :, None] + column[:, None, :])
                    for column, share in beside
                )
                bins += weight[:, :, None, None] * found
            return bins

        shape = (*y_first.shape, x_first.shape[1], cells.shape[1])
        return jax.lax.fori_loop(0, y_steps * x_steps, add, jnp.zeros(shape))

    parts = _split((rows, x.lines, y.weights, x.weights), REGIONS_AT_ONCE_ON_CPU)
    return _join(jax.lax.map(pool, parts), len(rows)).astype(cells.dtype)


def _used(weights):
    """The first line that a bin weighs, and the number from there to its last, (P, O) each."""
    used = weights != 0
    first = jnp.argmax(used, axis=-1)
    behind = used.shape[-1] - jnp.argmax(used[..., ::-1], axis=-1)
    return first, jnp.where(jnp.any(used, axis=-1), behind - first, 0)


def _line(lines, weights, which):
    """A line of each bin and its weight, which is 0 behind the last; (P, O) each."""
    held = jnp.minimum(which, lines.shape[1] - 1)
    weight = jnp.take_along_axis(weights, held[..., None], axis=2)[..., 0]
    return jnp.take_along_axis(lines, held, axis=1), jnp.where(which == held, weight, 0)


def _read(cells, places):
    return cells.at[places].get(mode="promise_in_bounds").astype(jnp.float32)


def _add_windows(sizes, gradient, level, y, x):
    """Adds each region's gradient to its cells, WINDOW x WINDOW cells at a time.

    The maps lie below one another, with room for windows that reach beyond
    their cells, where they add 0.
    """
    heights, widths = zip(*sizes, strict=True)
    num_channels = gradient.shape[-1]
    above = (jnp.cumsum(jnp.array(heights)) - jnp.array(heights))[level]
    room = (sum(heights) + WINDOW, max(widths) + WINDOW, num_channels)

    def add_region(region, canvas):
        top, num_rows, y_weights = _dense(y, region, max(heights))
        left, num_columns, x_weights = _dense(x, region, max(widths))
        bins = gradient[region].astype(jnp.float32).reshape(y_weights.shape[0], -1)
        across = -(-num_columns // WINDOW)

        def add_window(step, canvas):
            i, j = step // across * WINDOW, step % across * WINDOW
            rows = jax.lax.dynamic_slice_in_dim(y_weights, i, WINDOW, axis=1).T @ bins
            rows = rows.reshape(WINDOW, -1, num_channels)
            columns = jax.lax.dynamic_slice_in_dim(x_weights, j, WINDOW, axis=1)
            window = jnp.einsum("qu,tqc->tuc", columns, rows)
            start = (above[region] + top + i, left + j, 0)
            window += jax.lax.dynamic_slice(canvas, start, window.shape)
            return jax.lax.dynamic_update_slice(canvas, window, start)

        return jax.lax.fori_loop(0, -(-num_rows // WINDOW) * across, add_window, canvas)

    canvas = jax.lax.fori_loop(0, len(level), add_region, jnp.zeros(room))
    ends = [sum(heights[: number + 1]) for number in range(len(heights))]
    maps = [canvas[end - h : end, :w] for end, (h, w) in zip(ends, sizes, strict=True)]
    return jnp.concatenate([cells.reshape(-1, num_channels) for cells in maps])


def _dense(axis, region, longest):
    """First line of a region, the number from there to its last, and the weights of all these."""
    lines, weights = axis.lines[region], axis.weights[region]
    used = jnp.any(weights != 0, axis=0)
    first = jnp.min(jnp.where(used, lines, longest))
    last = jnp.max(jnp.where(used, lines, -1))
    same = lines[:, None] - first == jnp.arange(longest + WINDOW)
    return first, jnp.maximum(last - first + 1, 0), weights @ same.astype(weights.dtype)


def _split(arrays, size=None):
    """Parts of `size` regions, the last filled up with zeros, which weigh nothing."""
    count = len(arrays[0])
    size = max(min(size or REGIONS_AT_ONCE, count), 1)
    more = -count % size

    def split(array):
        padded = jnp.pad(array, ((0, more), *[(0, 0)] * (array.ndim - 1)))
        return padded.reshape(-1, size, *array.shape[1:])

    return jax.tree.map(split, arrays)


def _join(parts, count):
    return parts.reshape(-1, *parts.shape[2:])[:count]
