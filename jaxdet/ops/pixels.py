"""From the canvas to what a backbone reads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxdet.ops.contracts import check_at_least, check_shapes


@check_shapes
def content_mask(height: int, width: int, size: Int[Array, "2"]) -> Bool[Array, "H W"]:
    """True inside the image of `size` (height, width) at the top left of the canvas.

    >>> content_mask(2, 3, jnp.array([1, 2]))
    Array([[ True,  True, False],
           [False, False, False]], dtype=bool)

    Raises:
        ValueError: if a side of the canvas is negative.
    """
    check_at_least(0, height=height, width=width)
    return (jnp.arange(height)[:, None] < size[0]) & (jnp.arange(width) < size[1])


@check_shapes
def normalize(
    pixels: Real[Array, "H W 3"],
    size: Int[Array, "2"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    padding: float | None = None,
) -> Float[Array, "H W 3"]:
    """Subtracts `mean` and divides by `std`; then nothing of the canvas beside the image is left.

    >>> pixels = jnp.full((1, 2, 3), 9, jnp.uint8)
    >>> normalize(pixels, jnp.array([1, 1]), mean=(1.0, 3.0, 9.0), std=(2.0, 2.0, 2.0))
    Array([[[4., 3., 0.],
            [0., 0., 0.]]], dtype=float32)

    Args:
        pixels: of a canvas, RGB in 0..255, whole or not; anything outside the image.
        size: (height, width) of the image, at the top left.
        mean: of RGB in 0..255.
        std: of RGB, above 0.
        padding: the pixel value outside the image before normalising, as YOLOX
            pads; None gives 0 after it, as mmdetection does.

    Raises:
        ValueError: if mean or std are not three numbers, or std not above 0.
    """
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ValueError(f"mean and std must be three numbers, std above 0, got {mean}, {std}")
    mean, std = jnp.array(mean), jnp.array(std)
    outside = jnp.zeros(3) if padding is None else (padding - mean) / std
    normalized = (pixels.astype(jnp.float32) - mean) / std
    return jnp.where(content_mask(*pixels.shape[:2], size)[..., None], normalized, outside)
