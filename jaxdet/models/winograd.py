"""A 3x3 convolution as matrix products over tiles: 16 multiplications for four outputs, not 36.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), section
4.1: along each axis four sums of neighbours, times four sums of the kernel, give two outputs. The
factors are 1 and 1/2, so hardly more is lost to rounding than in the sum of 9 C terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# From the three taps of a kernel along one axis to their four sums, and along both from nine to 16.
_SUMS_OF_TAPS = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
_SUMS_OF_KERNEL = np.kron(_SUMS_OF_TAPS, _SUMS_OF_TAPS)


def convolve_by_tiles(
    x: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C O"]
) -> Float[Array, "B H W O"]:
    """A convolution of stride 1, padded by one on every side; linear in both.

    The transposes, which make its gradients, have as many products.

    Args:
        x: a batch of maps of any size.
        kernel: in (height, width, in, out) layout.
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    rows, columns = -(-height // 2), -(-width // 2)
    margins = (1, 2 * rows - height + 1), (1, 2 * columns - width + 1)
    pairs = jnp.pad(x, ((0, 0), *margins, (0, 0)))
    pairs = pairs.reshape(batch, rows + 1, 2, columns + 1, 2, channels)
    # One axis after the other, each as one array: XLA compiles few kernels.
    lines = jnp.stack(_sums_of_pairs(pairs[:, :, 0], pairs[:, :, 1], axis=1))
    tiles = jnp.stack(_sums_of_pairs(lines[..., 0, :], lines[..., 1, :], axis=3), axis=1)
    kernels = (_SUMS_OF_KERNEL @ kernel.reshape(9, -1)).reshape(16, channels, features)
    products = tiles.reshape(16, -1, channels) @ kernels
    products = products.reshape(4, 4, batch, rows, columns, features)
    # (4, B, rows, columns, 2, O), then (B, rows, 2, columns, 2, O).
    lines = jnp.stack(_outputs([p[:, 0] for p in jax.lax.split(products, (1,) * 4, 1)]), axis=4)
    y = jnp.stack(_outputs([p[0] for p in jax.lax.split(lines, (1,) * 4, 0)]), axis=2)
    return y.reshape(batch, 2 * rows, 2 * columns, features)[:, :height, :width]


def _sums_of_pairs(first, second, axis):
    """Of four neighbours, two of a pair of `axis` and two of the next."""
    count = first.shape[axis] - 1
    a, b = (jax.lax.slice_in_dim(half, 0, count, axis=axis) for half in (first, second))
    c, d = (jax.lax.slice_in_dim(half, 1, None, axis=axis) for half in (first, second))
    return a - c, b + c, c - b, b - d


def _outputs(products):
    """Both outputs of a tile, along one axis, from its four products."""
    a, b, c, d = products
    return a + b + c, b - c - d
