"""Convolution as XLA does it, but for the gradient of its kernel on CPUs.

XLA's CPU backend computes that gradient as a convolution whose kernel is the whole map: once
that map is larger than a cache, a third to a tenth of the forward pass's speed is left.
docs/performance.md has what was tried.
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# Of an output, what XLA's gradient still takes at full speed.
PART_BYTES = 1_250_000
# More parts than this cost more to compile than they save.
MAX_PARTS = 8
# Between so many channels a product for each pixel of the kernel is quicker than parts.
WIDE = 192


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "K K _ O"], stride: int, groups: int
) -> Float[Array, "B _ _ O"]:
    """A square convolution, padded by (K - 1) // 2 on every side as in torch.

    XLA's "SAME" is not used: with a stride it pads the other side than torch does.

    Args:
        x: a batch of maps.
        kernel: in (height, width, in / groups, out) layout; K is odd.
        stride: step between output positions.
        groups: channels are split into so many parts, each convolved by itself.
    """
    return _convolve(x, kernel, stride, groups, rows=(_margin(kernel),) * 2)


@partial(convolve.defjvp, symbolic_zeros=True)
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
    whole = partial(convolve, stride=stride, groups=groups)
    count = min(-(-y.size * y.dtype.itemsize // PART_BYTES), MAX_PARTS)
    if count <= 1 or groups > 1 or y.dtype != jnp.float32:
        return whole
    quick = partial(_by_parts, stride=stride, height=y.shape[1], count=count)
    if stride == 1 and min(x.shape[-1], y.shape[-1]) >= WIDE:
        quick = _by_products
    form = partial(jax.lax.platform_dependent, cpu=quick, default=whole)
    # Else what is cut out of `x` would be kept beside it from the forward to the backward pass.
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
            parts.append(_convolve(x[images, max(top, 0) : bottom], kernel, stride, 1, rows))
        done.append(jnp.concatenate(parts, axis=1))
    return jnp.concatenate(done)


def _parts(batch: int, height: int, count: int) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Images, and the first and last + 1 of their output rows: `count` parts or fewer."""
    groups = min(batch, count)
    strips = min(count // groups, height)
    rows = [(height * i // strips, height * (i + 1) // strips) for i in range(strips)]
    for i in range(groups):
        yield slice(batch * i // groups, batch * (i + 1) // groups), rows


def _by_products(x, kernel):
    """As the sum of a product for each pixel of the kernel; stride 1.

    With its margins the batch is one long row of pixels, on which a shift of the kernel is a
    shift by so many pixels.
    """
    margin, size = _margin(kernel), kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    width = padded.shape[2]
    pixels = padded.reshape(-1, padded.shape[-1])
    furthest = (size - 1) * (width + 1)
    y = sum(
        pixels[shift : len(pixels) - furthest + shift] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
        for shift in [i * width + j]
    )
    # The last rows, which no shift reaches, belong to margins.
    y = jnp.pad(y, ((0, furthest), (0, 0))).reshape(*padded.shape[:3], -1)
    return y[:, : x.shape[1], : x.shape[2]]


def _convolve(x, kernel, stride, groups, rows):
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
