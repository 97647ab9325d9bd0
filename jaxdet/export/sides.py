"""The sides that an image has on the canvas, inside a program.

They are those of `data.transforms`, whether an image's sides are numbers that are known
when the program is written, or only when it runs; then they are counted in whole
numbers of 32 bits.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdet.data import transforms

Side = int | Int[Array, ""]

DOUBLE_BITS = 52  # Of a 64-bit float's fraction.
POWERS = 2 ** np.arange(16, dtype=np.int32)  # A side is below the last.


class Fitted(NamedTuple):
    """How an image fits on the canvas.

    Attributes:
        size: (height, width) there.
        scale: canvas pixels per original pixel.
        small: whether that is below a half.
    """

    size: tuple[Side, Side]
    scale: float | Float[Array, ""]
    small: bool | Bool[Array, ""]


def fit(
    height: Side,
    width: Side,
    *,
    canvas: tuple[int, int],
    resize: tuple[int | tuple[int, ...], int],
    rule: str,
) -> Fitted:
    """Fits an image to its limits and the canvas.

    Args:
        height: of the image, below 2**15.
        width: likewise.
        canvas: (height, width).
        resize: (short, long) sides; of several short sides the largest counts.
        rule: one of `types.RESIZE_RULES`: "torchvision" rounds sides down.
    """
    short, long = max(resize[0]) if isinstance(resize[0], tuple) else resize[0], resize[1]
    if isinstance(height, int):
        scale = transforms.fit_scale((height, width), short=short, long=long, canvas=canvas)
        whole = int if rule == "torchvision" else round
        size = tuple(max(1, whole(side * scale)) for side in (height, width))
        return Fitted(size, scale, scale < 0.5)
    # More than the canvas is never reached, and products must not overflow.
    short, long = (min(side, max(canvas)) for side in (short, long))
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
    times = _times_down if rule == "torchvision" else _times
    size = tuple(jnp.maximum(times(side, over, under), 1) for side in (height, width))
    return Fitted(size, over.astype(jnp.float32) / under.astype(jnp.float32), 2 * over < under)


def _times(side, over, under):
    """`side * over / under`, rounded, halves to even."""
    whole, rest = lax.div(side * over, under), lax.rem(side * over, under)
    up = (2 * rest > under) | ((2 * rest == under) & (lax.rem(whole, jnp.int32(2)) == 1))
    return whole + up.astype(jnp.int32)


def _times_down(side, over, under):
    """`int(side * (over / under))` as 64-bit floats give it.

    Where the product is a whole number, it comes out one less if what the quotient lost when
    it was rounded is more than half a step of the floats below that number.
    """
    whole, rest = lax.div(side * over, under), lax.rem(side * over, under)
    exponent = _exponent(over, under)
    # What is left of the long division once all bits of the quotient are written.
    left = lax.fori_loop(
        0, DOUBLE_BITS - exponent, lambda _, left: lax.rem(2 * left, under), lax.rem(over, under)
    )
    lost = jnp.where(2 * left < under, left, 0)  # Else it was rounded up.
    steps = jnp.sum(POWERS < whole) - 1 - exponent  # From the quotient's exponent to that below.
    short = 2 * lost * side > under * (1 + jnp.sum(jnp.where(np.arange(16) < steps, POWERS, 0)))
    return whole - ((rest == 0) & short).astype(jnp.int32)


def _exponent(over, under):
    """The whole part, downwards, of the logarithm of `over / under` to the base 2."""
    return jnp.sum(over >= under * POWERS[1:]) - jnp.sum(over * POWERS < under)
