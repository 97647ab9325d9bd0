"""Products and convolutions whose outputs have more bits than what they multiply.

The outputs of heads want float32: in fewer bits hundreds of anchors would tie for a score. What is
kept for the gradient, and the gradient itself, have the type of the operands: the largest maps of
a step would be held in float32 otherwise.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models import convolution


def multiply(
    x: Float[Array, "*B C"], kernel: Float[Array, "C O"], dtype: DTypeLike
) -> Float[Array, "*B O"]:
    """The product of two arrays of one type, summed in another, which the output has."""
    if x.dtype == dtype:
        return x @ kernel
    return _widened(jnp.matmul, partial(jnp.matmul, preferred_element_type=dtype), x, kernel)


def convolve(
    x: Float[Array, "B H W C"],
    kernel: Float[Array, "K K _ O"],
    stride: int,
    groups: int,
    dtype: DTypeLike,
) -> Float[Array, "B _ _ O"]:
    """`convolution.convolve`, summed in `dtype`, which the output has."""
    narrow = partial(convolution.convolve, stride=stride, groups=groups)
    if x.dtype == dtype:
        return narrow(x, kernel)
    # GPUs convolve no bfloat16 into float32; XLA would make the copies by itself, the
    # gradient's, too.
    return _widened(narrow, lambda *two: narrow(*(each.astype(dtype) for each in two)), x, kernel)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _widened(narrow: Callable, wide: Callable, x: Array, kernel: Array) -> Array:
    """The value of `wide`, which is `narrow` with more bits, and the derivative of `narrow`."""
    return wide(x, kernel)


@_widened.defjvp
def _derivative(narrow, wide, primals, tangents):
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    y = _widened(narrow, wide, x, kernel)
    return y, (narrow(x_dot, kernel) + narrow(x, kernel_dot)).astype(y.dtype)
