"""Convolution as XLA does it, but on CPUs for what is wide and for the gradient of kernels.

Between many channels a 3x3 convolution and its gradients are products over tiles there. XLA's CPU
backend computes the gradient of other kernels as a convolution whose kernel is the whole map: once
that map is larger than a cache, a third to a tenth of the forward pass's speed is left.
docs/performance.md has what was tried.
"""

import functools
import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxdet.models.winograd import convolve_by_tiles

# Of an output, what XLA's gradient still takes at full speed.
PART_BYTES = 1_250_000
# More parts than this cost more to compile than they save.
MAX_PARTS = 8
# Products over tiles pay from so many channels on, in and out,
TILED_CHANNELS = 96
# and so many cells, which outweigh the sums of the kernel.
TILED_CELLS = 500
# Where the larger map has more bytes than a cache holds, they pay from so many channels on.
CACHED_BYTES = 5_000_000
UNCACHED_CHANNELS = 192
# They take eight times its memory: more than a large map may.
TILED_BYTES = 100_000_000


@partial(jax.jit, static_argnames=("stride", "groups"))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K _ O"], stride: int, groups: int
) -> Float[Array, "B _ _ O"]:
    """A square convolution, padded by (K - 1) // 2 on every side as in torch.

    XLA's "SAME" is not used: with a stride it pads the other side than torch does. On a CPU
    the last bits of an image may differ with the number of images, as its form does. Under
    `vmap` the limits of a form are those of one example, its memory that of all.

    Args:
        x: a batch of maps.
        kernel: in (height, width, in / groups, out) layout; K is odd.
        stride: step between output positions.
        groups: channels are split into so many parts, each convolved by itself.
    """
    # Jitted, so that the many maps of one shape in a network are traced once, and their gradients.
    return _convolve(x, kernel, stride, groups)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, stride, groups):
    whole = _whole(kernel, stride, groups)
    if _suits_tiles(x, kernel, stride, groups):
        return _by_platform(convolve_by_tiles, whole)(x, kernel)
    return whole(x, kernel)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(stride, groups, primals, tangents):
    """Convolves both tangents; the kernel's in a form that has a quick transpose.

    JAX makes gradients by transposing what is linear in a tangent.
    """
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    y = convolve(x, kernel, stride, groups)
    terms = []
    if not isinstance(x_dot, SymbolicZero):
        terms.append(convolve(x_dot, kernel, stride, groups))
    if not isinstance(kernel_dot, SymbolicZero):
        terms.append(_form_of(y, x, kernel, stride, groups)(x, kernel_dot))
    return y, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(y)


def _form_of(y, x, kernel, stride, groups) -> Callable[[Array, Array], Array]:
    """What convolves `x` with another kernel like this one, to be transposed in the kernel."""
    if _suits_tiles(x, kernel, stride, groups):
        return partial(convolve, stride=stride, groups=groups)
    whole = _whole(kernel, stride, groups)
    count = min(-(-y.size * y.dtype.itemsize // PART_BYTES), MAX_PARTS)
    if count <= 1 or groups > 1 or y.dtype != jnp.float32:
        return whole
    return _by_platform(partial(_by_parts, stride=stride, height=y.shape[1], count=count), whole)


def _suits_tiles(x, kernel, stride, groups) -> bool:
    """Whether products over tiles are quicker on a CPU, the kernel's gradient among them."""
    least, most = sorted(kernel.shape[2:])
    if len(kernel) != 3 or stride > 1 or groups > 1 or least < TILED_CHANNELS:
        return False
    if x.dtype != jnp.float32 or any(map(jax.export.is_symbolic_dim, x.shape)):
        return False  # An export for any number of images, or of any size, has no tiles.
    cells = math.prod(x.shape[:-1])
    size = cells * most * x.dtype.itemsize
    wide = size <= CACHED_BYTES or least >= UNCACHED_CHANNELS
    return wide and cells >= TILED_CELLS and size <= TILED_BYTES


def _by_platform(cpu, whole) -> Callable[[Array, Array], Array]:
    """`cpu(x, kernel)` where that is compiled for one, else `whole(x, kernel)`."""
    form = partial(jax.lax.platform_dependent, cpu=cpu, default=whole)
    # Else what is made of `x` would be kept beside it from the forward to the backward pass.
    return jax.checkpoint(form, prevent_cse=False)


def _by_parts(x, kernel, *, stride, height, count):
    """In up to `count` parts of the output, each by itself: images, or rows of one.

    The gradient is the sum over them, each of a map that a cache holds where they are enough.
    """
    margin, size = _margin(kernel), kernel.shape[0]
    done = []
    for images, strips in _parts(len(x), height, count):
        parts = []
        for first, last in strips:
            top, bottom = first * stride - margin, (last - 1) * stride - margin + size
            rows = (max(-top, 0), max(bottom - x.shape[1], 0))
            parts.append(_padded(x[images, max(top, 0) : bottom], kernel, stride, 1, rows))
        done.append(jnp.concatenate(parts, axis=1))
    return jnp.concatenate(done)


def _parts(batch: int, height: int, count: int) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Images, and the first and last + 1 of their output rows: `count` parts or fewer."""
    groups = min(batch, count)
    strips = min(count // groups, height)
    rows = [(height * i // strips, height * (i + 1) // strips) for i in range(strips)]
    for i in range(groups):
        yield slice(batch * i // groups, batch * (i + 1) // groups), rows


def _whole(kernel, stride, groups) -> Callable[[Array, Array], Array]:
    return partial(_padded, stride=stride, groups=groups, rows=(_margin(kernel),) * 2)


def _padded(x, kernel, stride, groups, rows):
    """As `convolve`, with as many rows of zeros above and below as `rows` says."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (rows, (_margin(kernel),) * 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _margin(kernel):
    return (kernel.shape[0] - 1) // 2
