"""Images of any size onto the canvas, inside a program.

It is what `data.transforms.resize` does: by the rule "rounded" with OpenCV, bilinear by
its fixed-point weights, and, below half size, the mean of the area of each pixel; by the
rule "torchvision" bilinear in floats. Sides may be numbers that are known when the program
is written, or only when it runs.
"""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Real, UInt8

from jaxdet.export import sides
from jaxdet.export.sides import Side

UNIT = 2048  # OpenCV's weights of 8-bit images are whole numbers of this part.
LEAST_OVERLAP = 1000  # It leaves out less than this part of a pixel at the ends of an area.


class Letterboxed(NamedTuple):
    """Images on the canvas.

    Attributes:
        pixels: content at the top left; what is beside it may be anything.
        size: (height, width) of the content.
        scale: canvas pixels per original pixel.
    """

    pixels: Real[Array, "B H W 3"]
    size: tuple[Side, Side]
    scale: float | Float[Array, ""]


def letterbox(
    pixels: UInt8[Array, "B h w 3"],
    height: Side,
    width: Side,
    *,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
    rule: str = "rounded",
) -> Letterboxed:
    """Resizes images, all of one size, to their limits and the canvas.

    Args:
        pixels: RGB. Its sides are read from the next two alone, so that they
            may be unknown while the program is written.
        height: h.
        width: w.
        canvas: (height, width).
        resize: (short, long) sides; of several short sides the largest counts.
        rule: one of `types.RESIZE_RULES`, which says the type of the result, too.
    """
    size, scale, small = sides.fit(height, width, canvas=canvas, resize=resize, rule=rule)
    axes = (height, size[0], canvas[0]), (width, size[1], canvas[1])
    shrink, stretch = (partial(way, rows=axes[0], columns=axes[1]) for way in (_area, _bilinear))
    if rule == "torchvision":
        found = _bilinear_floats(pixels, *axes)
    elif isinstance(small, bool):
        found = (shrink if small else stretch)(pixels)
    else:
        found = lax.cond(small, shrink, stretch, pixels)
    return Letterboxed(found, size, scale)


def _bilinear_floats(pixels, rows, columns):
    """Between the two lines and the two columns beside each point, as `data.interpolation`."""
    pixels = pixels.astype(jnp.float32)
    for axis, (source, target, count) in enumerate((rows, columns), 1):
        with _now(source):
            step = jnp.float32(source) / jnp.asarray(target, jnp.float32)
            place = (jnp.arange(count, dtype=jnp.float32) + 0.5) * step
            # It never is more, but a compiler that knew would round product and difference once.
            place = jnp.minimum(place, jnp.float32(source)) - 0.5
            place = jnp.clip(place, 0, jnp.asarray(source - 1, jnp.float32))
            first = jnp.floor(place)
            share = (place - first).reshape([-1, 1, 1] if axis == 1 else [-1, 1])
            first = first.astype(jnp.int32)
        here = _take(pixels, first, source, axis)
        pixels = here + share * (_take(pixels, first + 1, source, axis) - here)
    return pixels


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
        # On the image just 2 * target; by that alone XLA would multiply with its inverse.
        position = over / jnp.maximum(point, 2 * target).astype(jnp.float32)
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
