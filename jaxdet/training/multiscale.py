"""Training at several canvas sizes: the height is drawn on the host, the device resizes."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxdet.types import Batch, UserError

DIVISOR = 32  # Of the sides of a canvas.


def check_heights(heights: object) -> None:
    """Checks the heights that a config gives.

    Raises:
        UserError: unless they are positive multiples of 32, in a tuple or list.
    """
    known = heights if isinstance(heights, tuple | list) else (None,)
    whole = all(isinstance(height, int) and not isinstance(height, bool) for height in known)
    if not whole or any(height < 1 or height % DIVISOR for height in known):
        raise UserError(
            f"config.multiscale_heights wants positive multiples of {DIVISOR}, found {heights!r}"
        )


def draw_height(seed: int, step: int, *, heights: Sequence[int], every: int) -> int:
    """Draws the canvas height of a step, the same on every process and after a resume.

    Args:
        seed: of the run.
        step: steps done before this one.
        heights: those to choose from, all equally likely; at least one.
        every: steps from one draw to the next, at least 1. Unlike in the
            reference code, the first ones have a drawn height too.

    Reference: YOLOX's Exp.random_resize.
    """
    # The third number: an image of the run has the first two.
    return int(np.random.default_rng((seed, step // every, 1)).choice(heights))


def resize_batch(batch: Batch, height: int) -> Batch:
    """Resizes the canvas of a batch to another height.

    The width is the canvas's at the same ratio, rounded to a multiple of 32.
    Pixels are bilinear between the centres of pixels, without antialiasing, as
    `torch.nn.functional.interpolate` with `align_corners=False`, and rounded
    again where they are whole (the reference code trains on floats). Boxes and
    proposals are scaled by each axis's own ratio, sizes likewise and rounded,
    to at least 1; scales by the ratio of the heights.

    Args:
        batch: on the device.
        height: new height in pixels, static, a multiple of 32. At the
            canvas's own height the batch stays as it is.
    """
    images = batch.images
    old = images.pixels.shape[1:3]
    if height == old[0]:
        return batch
    width = DIVISOR * max(1, round(old[1] * height / old[0] / DIVISOR))
    ratios = np.array([height / old[0], width / old[1]], np.float32)
    proposals = images.proposals
    if proposals is not None:
        proposals = proposals._replace(boxes=proposals.boxes * np.tile(ratios[::-1], 2))
    sizes = jnp.round(images.sizes * ratios).astype(images.sizes.dtype)
    pixels = _interpolate(_interpolate(images.pixels, 1, height), 2, width)
    if jnp.issubdtype(images.pixels.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    images = images._replace(
        pixels=pixels.astype(images.pixels.dtype),
        sizes=jnp.maximum(sizes, 1),
        scales=images.scales * ratios[0],
        proposals=proposals,
    )
    return batch._replace(images=images, boxes=batch.boxes * np.tile(ratios[::-1], 2))


def _interpolate(values: Shaped[Array, "B H W C"], axis: int, size: int) -> Float[Array, "B h w C"]:
    """One axis at another size: each new pixel lies between two old ones, known beforehand."""
    old = values.shape[axis]
    place = (np.arange(size) + 0.5) * (old / size) - 0.5
    first = np.floor(place).astype(np.int32)
    share = (place - first).astype(np.float32)
    share = share.reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    # Clipped: what lies outside of the first and the last centre is as they are.
    low, high = (
        jnp.take(values, index, axis, mode="clip").astype(jnp.float32)
        for index in (first, first + 1)
    )
    return low + share * (high - low)
