"""The layers that all models share: convolution, pooling, upsampling, activation, norm."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdet.models import wide_output
from jaxdet.models.batch_norm import BatchNorm

NORM_KINDS = ("frozen", "batch", "sync", "group")
NORM_EPSILON = 1e-5  # torch's default for both batch and group norm.
BATCH_NORM_MOMENTUM = 0.9  # The share that is kept; torch calls this momentum 0.1.

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform = nn.initializers.xavier_uniform()
# What torch draws a convolution from by default: +- 1 / sqrt(fan in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "relu": nn.relu,
    "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=0.1),
}


class Conv(nn.Module):
    """A square convolution, padded by (kernel_size - 1) // 2 on every side as in torch.

    A 1x1 convolution runs as a matrix product on the subsampled map: the same
    numbers, and on CPUs a gradient several times as fast. The others are `convolution.convolve`'s.

    Attributes:
        features: channels of the output.
        kernel_size: height and width of the kernel, odd.
        stride: step between output positions.
        groups: channels are split into so many parts, each convolved by itself;
            as many as there are channels makes a depthwise convolution.
        use_bias: whether a bias is added.
        kernel_init: initialiser of the kernel, in (height, width, in / groups, out)
            layout.
        bias_init: initialiser of the bias.
        dtype: type of the computation; the parameters are float32.
        output_dtype: a wider type for the output and its sums; None for `dtype`, in which
            gradients are computed all the same.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable = kaiming_normal
    bias_init: Callable = nn.initializers.zeros
    dtype: DTypeLike = jnp.float32
    output_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ O"]:
        """Convolves a batch of maps."""
        size, stride = self.kernel_size, self.stride
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        dtype = jnp.dtype(self.output_dtype or self.dtype)
        if size == 1 and self.groups == 1:
            if stride > 1:
                # Before 0.12 jaxlib ends the process where it fuses such a slice into a product
                # on a GPU (openxla/xla#47381).
                x = jax.lax.optimization_barrier(x[:, ::stride, ::stride])
            y = wide_output.multiply(x, kernel[0, 0], dtype)
        else:
            y = wide_output.convolve(x, kernel, stride, self.groups, dtype)
        if self.use_bias:
            # In float32: the gradient is a sum over all cells, in this type.
            bias = self.param("bias", self.bias_init, (self.features,))
            y = (y.astype(bias.dtype) + bias).astype(dtype)
        return y


def max_pool_3x3_stride_2(x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
    """The stem's max pooling: 3x3 windows, stride 2, padded by one with -inf.

    Rows, then columns, as maxima of strided slices: the gradient of XLA's
    pooling takes three times as long on CPUs. Where the largest values of a
    window are equal the gradient is shared among them; torch gives it to the
    first. Behind a ReLU such ties are zeros and pass no gradient at all.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // 2 * 2
        shifted = [jax.lax.slice_in_dim(x, i, i + last + 1, 2, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return x


def max_pool_2x2_stride_2(x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
    """VGG's max pooling: 2x2 windows, stride 2, not padded; an odd last row or column is dropped.

    As maxima of strided slices, for the same reasons and with the same ties as
    `max_pool_3x3_stride_2`.
    """
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    x = x[:, :height, :width]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def max_pool_5x5_stride_1(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Max pooling that keeps the size: 5x5 windows, stride 1, padded by two with -inf.

    Run twice it pools 9x9 windows, three times 13x13. As maxima of shifted
    slices, for the same reasons and with the same ties as `max_pool_3x3_stride_2`.
    """
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        side = x.shape[axis] - 4
        shifted = [jax.lax.slice_in_dim(x, i, i + side, axis=axis) for i in range(5)]
        x = functools.reduce(jnp.maximum, shifted)
    return x


def upsample_2x(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B _ _ C"]:
    """Doubles a map by repeating pixels and cuts it to `size`.

    For odd sizes this is also what nearest-neighbour interpolation to the
    exact size gives, and broadcasting has a cheaper gradient than a gather.

    Args:
        x: a map.
        size: (height, width) of the finer map.

    Raises:
        ValueError: if `x` is not half as large as the finer map, rounded up.
    """
    batch, height, width, channels = x.shape
    if (height, width) != (-(-size[0] // 2), -(-size[1] // 2)):
        raise ValueError(
            f"a map of {height} x {width} is not half of the finer {size[0]} x {size[1]}"
        )
    doubled = jnp.broadcast_to(
        x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
    ).reshape(batch, 2 * height, 2 * width, channels)
    return doubled[:, : size[0], : size[1]]


def activate(x: Float[Array, "..."], kind: str) -> Float[Array, "..."]:
    """Applies an activation: "silu", "relu" or "leaky_relu", whose slope below 0 is 0.1.

    Raises:
        ValueError: if `kind` is unknown.
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; found {kind!r}")
    return ACTIVATIONS[kind](x)


def norm_layer(
    kind: str,
    channels: int,
    *,
    train: bool,
    frozen: bool = False,
    axis_name: str | None = None,
    epsilon: float = NORM_EPSILON,
    momentum: float = BATCH_NORM_MOMENTUM,
    scale_init: Callable = nn.initializers.ones,
    dtype: DTypeLike = jnp.float32,
    name: str,
) -> nn.Module:
    """Makes the normalisation layer that follows a convolution.

    All kinds have the parameters `scale` and `bias`; all but "group" have the
    running statistics `mean` and `var` in the collection "batch_stats".
    Statistics are computed in float32 whatever `dtype` is. Those of a batch or
    an image cover the whole canvas, padding included: train and predict on
    the same canvas, and with little padding.

    Args:
        kind: "frozen" (always the running statistics), "batch" (those of the
            batch on this device while training), "sync" (those of the batch
            on all devices) or "group" (those of each image).
        channels: C, of the map to normalise.
        train: whether the statistics come from the batch.
        frozen: True has "batch" and "sync" behave as "frozen", for frozen stages.
        axis_name: the mapped axis of "sync"; None makes it "batch".
        epsilon: added to the variance.
        momentum: the share of the running statistics that a step keeps.
        scale_init: initialiser of `scale`.
        dtype: type of the output.
        name: name of the module, part of the parameters' paths.

    Raises:
        ValueError: if `kind` is unknown.

    Reference: Ioffe and Szegedy, arXiv:1502.03167; Wu and He, Group
    Normalization, arXiv:1803.08494. The running variance averages the biased
    variance of the batch, n in the denominator; torch's has n - 1.
    """
    if kind not in NORM_KINDS:
        raise ValueError(f"norm must be one of {', '.join(NORM_KINDS)}; found {kind!r}")
    if kind == "group":
        return nn.GroupNorm(
            num_groups=num_groups(channels),
            epsilon=epsilon,
            scale_init=scale_init,
            dtype=dtype,
            name=name,
        )
    return BatchNorm(
        use_running_average=not train or frozen or kind == "frozen",
        momentum=momentum,
        epsilon=epsilon,
        scale_init=scale_init,
        axis_name=axis_name if kind == "sync" and train else None,
        dtype=dtype,
        name=name,
    )


def num_groups(channels: int) -> int:
    """The number of groups of group norm: 32, or fewer where channels are few.

    The largest of 32, 16, 8, 4 and 2 that divides `channels` and leaves every
    group two channels or more, else 1. A group of one channel would be
    instance norm, which wipes out a map of one pixel.
    """
    fitting = (g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels >= 2 * g)
    return next(fitting, 1)
