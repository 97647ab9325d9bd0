"""Elementwise losses, and the two functions that reduce them.

Losses and sums are float32 whatever comes in. Nothing here averages: a
detector divides a `masked_sum` by a `global_count`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real, Shaped


def sigmoid_cross_entropy(
    logits: Float[Array, "*S"], targets: Shaped[Array, "*S"]
) -> Float[Array, "*S"]:
    """Binary cross entropy of logits with targets in [0, 1], stable for any logit."""
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * targets


def softmax_cross_entropy(
    logits: Float[Array, "*S K"], labels: Int[Array, "*S"]
) -> Float[Array, "*S"]:
    """Cross entropy with labels in 0..K-1; labels outside are clipped: mask them."""
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
    return -jnp.take_along_axis(log_probability, labels[..., None], axis=-1)[..., 0]


def l1(predictions: Real[Array, "*S"], targets: Real[Array, "*S"]) -> Float[Array, "*S"]:
    """Absolute difference."""
    return jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


def smooth_l1(
    predictions: Real[Array, "*S"], targets: Real[Array, "*S"], *, beta: float = 1.0
) -> Float[Array, "*S"]:
    """Quadratic below `beta`, linear above: .5 x^2 / beta, then |x| - .5 beta.

    Simple-faster-rcnn's sigma is beta = 1 / sigma^2.

    Raises:
        ValueError: if `beta` is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    difference = l1(predictions, targets)
    return jnp.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def accuracy(
    logits: Float[Array, "S K"], labels: Int[Array, " S"], valid: Bool[Array, " S"]
) -> Float[Array, ""]:
    """The fraction of valid rows whose largest logit is the label's, in [0, 1]; 0 with none."""
    hits = jnp.argmax(logits, axis=-1) == labels
    return masked_sum(hits, valid) / jnp.maximum(jnp.sum(valid), 1)


def masked_sum(values: Shaped[Array, "*S"], where: Bool[Array, "..."]) -> Float[Array, ""]:
    """Sum of the values where the mask is set; the mask may lack trailing axes.

    Values outside the mask may be anything, NaN included.
    """
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
    return jnp.sum(jnp.where(where, values.astype(jnp.float32), 0.0))


def global_count(count: Shaped[Array, ""], axis_name: str | None = None) -> Float[Array, ""]:
    """What a device divides its sum by so that the mean over devices is the global mean.

    The count over all devices, at least 1, divided by their number;
    without an axis, the count itself.
    """
    count = count.astype(jnp.float32)
    if axis_name is None:
        return jnp.maximum(count, 1)
    return jnp.maximum(jax.lax.psum(count, axis_name), 1) / jax.lax.axis_size(axis_name)
