"""The gradient of a batch that a device takes in parts, one after the other.

Parts are to the loss what devices are: each divides its sums by counts of the
whole batch (`ops.losses.global_count`), so that the mean over parts and devices
is the loss of the whole batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdet.types import Batch, Metrics


class PartsAxis:
    """The axis of devices, and in each of them of the parts of its share.

    Made anew for each trace of a loss. Without totals it only notes what is
    counted; with them, what all parts have counted takes the place of it.
    """

    def __init__(self, name: str, parts: int, totals: Sequence[jax.Array] | None = None):
        """Takes the name of the devices' axis, the number of parts, and the totals.

        Args:
            name: of the axis of devices.
            parts: of each device.
            totals: over all parts and devices, in the order in which the loss counts.
        """
        self.name = name
        self.counts: list[jax.Array] = []
        self._parts, self._totals = parts, totals

    def global_count(self, count: jax.Array) -> jax.Array:
        """What a part divides by, so that the mean over parts and devices is the global mean."""
        self.counts.append(count)
        if self._totals is None:
            return jnp.maximum(count, 1)
        total = self._totals[len(self.counts) - 1]
        return jnp.maximum(total, 1) / (jax.lax.axis_size(self.name) * self._parts)


def value_and_grad(
    loss: Callable,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    parts: int,
    axis_name: str,
) -> tuple[tuple[jax.Array, tuple[Any, Any]], Any]:
    """The loss of a device's share of a batch and its gradient, part by part.

    Every part is seen twice: at first for what it counts, of which XLA keeps
    only what decides on the counts (nothing of RetinaNet's network, no box head
    of Faster R-CNN, YOLOX's whole forward pass), then for its gradient. Memory
    is that of a part, and one more gradient. With one part nothing is changed.

    Batch norm sees a part, not the batch, and its running statistics go from
    part to part. All else is as without parts, but for the order of sums, and
    for a count that hangs on how the first pass rounds.

    Args:
        loss: `(params, batch_stats, batch, axis) -> (total, (metrics, batch_stats))`;
            the axis is the name of the devices' axis, or a `PartsAxis`.
        params: for which the gradient is taken.
        batch_stats: running statistics.
        batch: the device's share.
        parts: into how many, of equally many images, it is divided.
        axis_name: of the devices.

    Returns:
        As `jax.value_and_grad` of the loss, with counts summed over the parts.

    Raises:
        ValueError: if the share does not divide.
    """
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return differentiate(params, batch_stats, batch, axis_name)
    size = batch.index.shape[0]
    if size % parts:
        raise ValueError(f"a device's share of {size} images does not divide into {parts} parts")
    divided = jax.tree.map(lambda x: x.reshape(parts, size // parts, *x.shape[1:]), batch)
    # XLA's CPU backend runs a convolution in a loop some 30 times as slowly.
    unroll = parts if jax.default_backend() == "cpu" else 1

    def count(_: None, part: Batch) -> tuple[None, list[jax.Array]]:
        axis = PartsAxis(axis_name, parts)
        loss(params, batch_stats, part, axis)
        return None, axis.counts

    counts = jax.lax.scan(count, None, divided, unroll=unroll)[1]
    totals = jax.lax.psum([jnp.sum(each) for each in counts], axis_name)

    def of_part(batch_stats: Any, part: Batch) -> tuple:
        axis = PartsAxis(axis_name, parts, totals)
        (total, (metrics, batch_stats)), gradients = differentiate(params, batch_stats, part, axis)
        return (gradients, total, metrics.means), metrics.counts, batch_stats

    def add(carry: tuple, part: Batch) -> tuple[tuple, None]:
        *sums, batch_stats = carry
        *found, batch_stats = of_part(batch_stats, part)
        return (*jax.tree.map(jnp.add, sums, found), batch_stats), None

    first = jax.tree.map(lambda x: x[0], divided)
    *shapes, _ = jax.eval_shape(of_part, batch_stats, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (sums, counts, batch_stats), _ = jax.lax.scan(
        add, (*zeros, batch_stats), divided, unroll=unroll
    )
    gradients, total, means = jax.tree.map(lambda x: x / parts, sums)
    return (total, (Metrics(means, counts), batch_stats)), gradients
