"""From the uint8 canvas to what a backbone reads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8


def content_mask(height: int, width: int, size: Int[Array, "2"]) -> Bool[Array, "H W"]:
    """True inside the image of `size` (height, width) at the top left of the canvas."""
    return (jnp.arange(height)[:, None] < size[0]) & (jnp.arange(width) < size[1])


def normalize(
    pixels: UInt8[Array, "H W 3"],
    size: Int[Array, "2"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "H W 3"]:
    """Subtracts `mean`, divides by `std` (RGB, of 0..255), then zeroes the padding.

    Padding after normalising is what mmdetection does: the canvas may hold
    anything outside the image.
    """
    normalized = (pixels.astype(jnp.float32) - jnp.array(mean)) / jnp.array(std)
    return jnp.where(content_mask(*pixels.shape[:2], size)[..., None], normalized, 0.0)
