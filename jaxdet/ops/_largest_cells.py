"""Where RoIPool finds the largest cell of each bin."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Corners are integers in float32 up to here; nothing reads a map so large.
_FARTHEST = 2.0**24


def round_corners(values: Float[Array, "P 4"]) -> Int[Array, "P 4"]:
    """Rounds halves away from 0; adding .5 and cutting would round .49999997 up."""
    values = jnp.clip(values, -_FARTHEST, _FARTHEST)
    whole = jnp.trunc(values)
    away = jnp.abs(values - whole) >= 0.5
    return (whole + jnp.where(away, jnp.sign(values), 0)).astype(jnp.int32)


def bin_edges(
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


def largest_cells(cells, rows, columns, offset, width):
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
