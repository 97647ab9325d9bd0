"""Images of any size onto the canvas, inside a program.

It is what `data.transforms.resize` does with OpenCV: bilinear by its fixed-point
weights, and, below half size, the mean of the area of each pixel. Sides may be
numbers that are known when the program is written, or only when it runs.
"""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from jaxdet.data import transforms

Side = int | Int[Array, ""]

UNIT = 2048  # OpenCV's weights of 8-bit images are whole numbers of this part.
LEAST_OVERLAP = 1000  # It leaves out less than this part of a pixel at the ends of an area.


class Letterboxed(NamedTuple):
    """Images on the canvas.

    Attributes:
        pixels: content at the top left; what is beside it may be anything.
        size: (height, width) of the content.
        scale: canvas pixels per original pixel.
    """

    pixels: UInt8[Array, "B H W 3"]
    size: tuple[Side, Side]
    scale: float | Float[Array, ""]


def letterbox(
    pixels: UInt8[Array, "B h w 3"],
    height: Side,
    width: Side,
    *,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
) -> Letterboxed:
    """Resizes images, all of one size, to their limits and the canvas.

    Args:
        pixels: RGB. Its sides are read from the next two alone, so that they
            may be unknown while the program is written.
        height: h.
        width: w.
        canvas: (height, width).
        resize: (short, long) sides; of several short sides the largest counts.
    """
    short, long = max(resize[0]) if isinstance(resize[0], tuple) else resize[0], resize[1]
    if isinstance(height, int):
        scale = transforms.fit_scale((height, width), short=short, long=long, canvas=canvas)
        size = tuple(max(1, round(side * scale)) for side in (height, width))
        small = scale < 0.5
    else:
        # More than the canvas is never reached, and products must not overflow.
        short, long = (min(side, max(canvas)) for side in (short, long))
        size, scale, small = _fit(height, width, short=short, long=long, canvas=canvas)
    sides = (height, size[0], canvas[0]), (width, size[1], canvas[1])

    def shrink(pixels):
        return _area(pixels, *sides)

    def stretch(pixels):
        return _bilinear(pixels, *sides)

    if isinstance(small, bool):
        return Letterboxed((shrink if small else stretch)(pixels), size, scale)
    return Letterboxed(lax.cond(small, shrink, stretch, pixels), size, scale)


def _fit(height, width, *, short, long, canvas):
    """Sides on the canvas, scale, and whether that is below a half; by fractions, exactly."""
    limits = [
        (short, jnp.minimum(height, width)),
        (long, jnp.maximum(height, width)),
        (canvas[0], height),
        (canvas[1], width),
    ]
    over, under = (jnp.int32(number) for number in limits[0])
    for top, bottom in limits[1:]:
        less = top * under < over * bottom
        over, under = jnp.where(less, top, over), jnp.where(less, bottom, under)

    def times(side):
        whole, rest = lax.div(side * over, under), lax.rem(side * over, under)
        odd = lax.rem(whole, jnp.int32(2))
        up = (2 * rest > under) | ((2 * rest == under) & (odd == 1))
        return jnp.maximum(whole + up.astype(jnp.int32), 1)

    scale = over.astype(jnp.float32) / under.astype(jnp.float32)
    return (times(height), times(width)), scale, 2 * over < under


def _bilinear(pixels, rows, columns):
    """Between the two lines and the two columns beside each point, in whole numbers."""
    (top, bottom), row_weights = _beside(*rows)
    (left, right), weights = _beside(*columns)
    source = columns[0]
    # At the ends the one column that there is counts whole; lines share theirs.
    ends = (left < 0) | (left >= source - 1)
    weights = jnp.where(ends, UNIT, weights[0]), jnp.where(ends, 0, weights[1])
    blended = []
    for row, row_weight in zip((top, bottom), row_weights, strict=True):
        line = _take(pixels, row, rows[0], 1)
        across = sum(
            _take(line, column, source, 2).astype(jnp.int32) * weight[:, None]
            for column, weight in zip((left, right), weights, strict=True)
        )
        product = lax.div(across, jnp.int32(16)) * row_weight[:, None, None]
        blended.append(lax.div(product, jnp.int32(2**16)))
    result = lax.div(blended[0] + blended[1] + 2, jnp.int32(4))
    return jnp.clip(result, 0, 255).astype(jnp.uint8)


def _beside(source, target, count):
    """The two places beside each of `count` points, and their weights, as OpenCV rounds them."""
    with _now(source):
        point = jnp.arange(count, dtype=jnp.int32)
        over = ((2 * point + 1) * source - target).astype(jnp.float32)
        position = over / jnp.asarray(2 * target, jnp.float32)
        first = jnp.floor(position)
        part = position - first
        weights = (jnp.round(share * UNIT).astype(jnp.int32) for share in (1 - part, part))
        first = first.astype(jnp.int32)
        return (first, first + 1), tuple(weights)


def _area(pixels, rows, columns):
    """The mean of the area that each pixel of the canvas covers."""

    def add_line(step, total):
        row, row_weight = _covered(*rows, step)
        line = _take(pixels, row, rows[0], 1)

        def add_column(step, total):
            column, weight = _covered(*columns, step)
            seen = _take(line, column, columns[0], 2).astype(jnp.float32)
            return total + seen * weight[:, None]

        across = lax.fori_loop(0, _most_covered(*columns), add_column, jnp.zeros_like(total))
        return total + across * row_weight[:, None, None]

    blank = jnp.zeros((pixels.shape[0], rows[2], columns[2], 3), jnp.float32)
    total = lax.fori_loop(0, _most_covered(*rows), add_line, blank)
    return jnp.clip(jnp.round(total), 0, 255).astype(jnp.uint8)


def _most_covered(source, target, count):
    """Places that a point covers, at most."""
    with _now(source):
        return lax.div(jnp.int32(source), jnp.int32(target)) + 2


def _covered(source, target, count, step):
    """The place of each of `count` points that is the `step`-th that it covers, and its weight."""
    point = jnp.arange(count, dtype=jnp.int32)
    place = lax.div(point * source, jnp.int32(target)) + step
    begin = jnp.maximum(point * source, place * target)
    overlap = jnp.minimum((point + 1) * source, (place + 1) * target) - begin
    overlap = jnp.where(overlap * LEAST_OVERLAP > target, overlap, 0)
    return place, overlap.astype(jnp.float32) / jnp.asarray(source, jnp.float32)


def _take(array, places, length, axis):
    """Whole lines along an axis; places beside the array are the nearest in it."""
    places = jnp.clip(places, 0, length - 1)
    index = (slice(None),) * axis + (places,)
    return array.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _now(side: Any) -> contextlib.AbstractContextManager:
    """What sides that are known make is computed while the program is written."""
    known = isinstance(side, int)
    return jax.ensure_compile_time_eval() if known else contextlib.nullcontext()
