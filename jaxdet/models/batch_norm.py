"""Batch normalisation, over a device's images or over those of all devices."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Normalises each channel, by the statistics of the batch or by running ones.

    The parameters are `scale` and `bias`; the running statistics are `mean` and `var`
    in the collection "batch_stats". All of it is float32, and so is what is computed.

    Attributes:
        use_running_average: whether the running statistics are used, and stay.
        momentum: the share of them that a step keeps.
        epsilon: added to the variance.
        scale_init: initialiser of `scale`.
        axis_name: a mapped axis whose devices share their statistics; None for no other.
        dtype: type of the output.

    Reference: Ioffe and Szegedy, arXiv:1502.03167, alg. 1.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    scale_init: Callable
    axis_name: str | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Normalises maps."""
        shape, dtype = x.shape[-1:], jnp.float32
        scale = self.param("scale", self.scale_init, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        mean, var = running_mean.value, running_var.value
        if not self.use_running_average:
            initializing = self.is_initializing()  # Where no axis is mapped yet.
            mean, var = _statistics(x, axis_name=None if initializing else self.axis_name)
            if not initializing:
                running_mean.value = self._keep(running_mean.value, mean)
                running_var.value = self._keep(running_var.value, var)
        return _normalize(x, mean, var, scale, bias, epsilon=self.epsilon, dtype=self.dtype)

    def _keep(self, running, new):
        return self.momentum * running + (1 - self.momentum) * new


# Jitted, so that the many maps of one shape in a network are traced once, and their gradients.
@partial(jax.jit, static_argnames="axis_name")
def _statistics(x, *, axis_name):
    """Mean and variance of each channel."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    means = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
    if axis_name:
        means = jax.lax.pmean(means, axis_name)
    mean, mean_square = means
    return mean, jnp.maximum(0, mean_square - jnp.square(mean))


@partial(jax.jit, static_argnames=("epsilon", "dtype"))
def _normalize(x, mean, var, scale, bias, *, epsilon, dtype):
    factor = jax.lax.rsqrt(var + epsilon) * scale
    return ((x - mean) * factor + bias).astype(dtype)
