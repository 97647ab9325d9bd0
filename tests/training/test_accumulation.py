"""A batch in parts, against the whole of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops.losses import global_count
from jaxdet.training.accumulation import value_and_grad
from jaxdet.types import Metrics

PARAMS = {"slope": jnp.float32(0.7), "shift": jnp.float32(-0.2)}


def loss(params, batch_stats, batch, axis):
    """Two terms with counts of their own, one of which depends on the parameters."""
    guess = params["slope"] * batch.boxes[..., 0] + params["shift"]
    far = guess > 0.5
    first = jnp.sum(jnp.where(batch.valid, guess**2, 0)) / global_count(jnp.sum(batch.valid), axis)
    second = jnp.sum(jnp.where(far, guess, 0)) / global_count(jnp.sum(far), axis)
    stats = {"seen": batch_stats["seen"] * 0.5 + jnp.mean(guess)}
    means = {"first": first, "second": second, "plain": jnp.mean(guess)}
    return first + second, (Metrics(means, {"far": jnp.sum(far)}), stats)


def differentiate(batch, *, devices, parts):
    """The results of all devices: their means, and the sums of their counts."""

    def one(batch):
        (total, (metrics, stats)), gradients = value_and_grad(
            loss, PARAMS, {"seen": jnp.float32(1)}, batch, parts=parts, axis_name="batch"
        )
        means = jax.lax.pmean((total, metrics.means, gradients), "batch")
        return means, jax.lax.psum(metrics.counts, "batch"), stats

    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(one, axis_name="batch", devices=jax.devices()[:devices])
    return jax.tree.map(lambda x: np.asarray(x[0]), mapped(split))


@pytest.mark.parametrize("devices, parts", [(1, 4), (2, 2), (1, 8)])
def test_parts_give_the_loss_the_gradient_and_the_counts_of_the_whole(toy, devices, parts):
    batch = toy.batch(0)
    valid = np.array(batch.valid)
    valid[:3] = False  # Some parts have nothing to count.
    batch = batch._replace(valid=valid)
    whole = differentiate(batch, devices=1, parts=1)
    found = differentiate(batch, devices=devices, parts=parts)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, found[0], whole[0])
    assert found[1] == whole[1]


def test_where_nothing_is_counted_parts_divide_by_one(toy):
    batch = toy.batch(0)
    batch = batch._replace(boxes=0 * batch.boxes, valid=np.zeros_like(batch.valid))
    (total, means, _), counts, _ = differentiate(batch, devices=2, parts=4)
    assert total == means["first"] == means["second"] == counts["far"] == 0
    np.testing.assert_allclose(means["plain"], -0.2, rtol=1e-6)


def test_running_statistics_go_from_part_to_part(toy):
    batch = toy.batch(0)
    stats, expected = differentiate(batch, devices=1, parts=2)[2], 1.0
    for rows in (slice(4), slice(4, 8)):
        expected = expected * 0.5 + np.mean(0.7 * batch.boxes[rows, :, 0] - 0.2)
    np.testing.assert_allclose(stats["seen"], expected, rtol=1e-6)


def test_a_share_that_does_not_divide_into_parts_is_refused(toy):
    with pytest.raises(ValueError, match="share of 8 images does not divide into 3 parts"):
        differentiate(toy.batch(0), devices=1, parts=3)
