import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training import state as states
from jaxdet.training.optimizer import build_optimizer
from jaxdet.training.steps import pmap_predict_step, pmap_train_step, put_state
from jaxdet.types import Metrics

SETTINGS = dict(learning_rate=0.1, base_batch_size=8, batch_size=8, num_steps=10, warmup_steps=4)

# What jax.monitoring calls the work of the compiler.
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def train(toy):
    """Trains two steps on some devices; gives the state and the last step's metrics."""

    def run(devices, *, norm=False, steps=2, change=lambda detector: detector):
        detector = change(toy.detector(norm=norm))
        tx, schedule = build_optimizer(**SETTINGS)
        devices = jax.local_devices()[:devices]
        step = pmap_train_step(detector, tx, schedule, seed=7, devices=devices)
        state = put_state(states.create(toy.variables(detector), tx), devices)
        for n in range(steps):
            state, metrics = step(state, toy.batch(n, devices=len(devices)))
        return jax.device_get(state), jax.device_get(metrics)

    return run


def assert_trees_close(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_one_and_eight_devices_train_the_same(train):
    one, metrics_of_one = train(1)
    eight, metrics_of_eight = train(8)
    assert_trees_close(one, eight, rtol=1e-4, atol=1e-6)
    assert_trees_close(metrics_of_one, metrics_of_eight, rtol=1e-4, atol=1e-6)


def test_counts_are_summed_and_means_are_averaged(train, toy):
    _, metrics = train(8)
    assert metrics.counts["objects"] == toy.batch(1).valid.sum()
    np.testing.assert_allclose(metrics.means["loss"], metrics.means["box_loss"], rtol=1e-6)
    # The second step is the second of four steps of warmup, from 0.001.
    np.testing.assert_allclose(metrics.means["learning_rate"], 0.1 * (0.001 + 0.999 / 4), rtol=1e-5)
    assert metrics.means["gradient_norm"] > 0


def test_nothing_that_a_step_returns_is_device_0s_alone(train):
    """Each device reports its own number; a step must return their mean or sum."""

    def change(detector):
        def loss(variables, batch, key, *, step, axis_name):
            device = jax.lax.axis_index(axis_name).astype(jnp.float32)
            total, (metrics, _) = detector.loss(variables, batch, key, axis_name=axis_name)
            metrics = Metrics({"mean": device}, {"count": device})
            stats = jax.tree.map(lambda x: x * 0 + device, variables["batch_stats"])
            return total + device, (metrics, stats)

        return detector._replace(loss=loss)

    state, metrics = train(8, norm=True, steps=1, change=change)
    assert metrics.means["mean"] == 3.5
    assert metrics.counts["count"] == 28
    assert metrics.means["loss"] > 3.5
    for leaf in jax.tree.leaves(state.batch_stats):
        np.testing.assert_array_equal(leaf, 3.5)


def test_batch_norm_keeps_statistics_of_all_devices(train):
    one, _ = train(1, norm=True, steps=1)
    eight, _ = train(8, norm=True, steps=1)
    # The mean of equally many pixels is the mean of the devices' means.
    assert_trees_close(one.batch_stats["bn"]["mean"], eight.batch_stats["bn"]["mean"], rtol=1e-4)
    assert np.any(one.batch_stats["bn"]["mean"] != 0)


def test_the_state_is_donated_and_what_it_was_made_of_is_not(toy):
    detector = toy.detector()
    tx, schedule = build_optimizer(**SETTINGS)
    first = states.create(toy.variables(detector), tx)
    placed = put_state(first)
    after, _ = pmap_train_step(detector, tx, schedule, seed=0)(placed, toy.batch(0, devices=8))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert int(after.step) == 1


def test_steps_after_the_first_do_not_compile(toy):
    """Whatever the number of objects, and although the first state comes from `put_state`."""
    detector = toy.detector(norm=True)
    tx, schedule = build_optimizer(**SETTINGS)
    step = pmap_train_step(detector, tx, schedule, seed=0)
    state = put_state(states.create(toy.variables(detector), tx))
    batches = [toy.batch(n, devices=8) for n in range(3)]
    batches[1] = batches[1]._replace(valid=np.zeros_like(batches[1].valid))
    compiled = []

    def listen(event, seconds, **details):
        if event == COMPILED:
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        state, _ = step(state, batches[0])
        first = len(compiled)
        for batch in batches[1:]:
            state, _ = step(state, batch)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first > 0
    assert len(compiled) == first


def test_predictions_keep_the_leading_axis_of_devices(toy):
    detector = toy.detector()
    variables = toy.variables(detector)
    images = toy.batch(0, devices=8, size=16).images
    found = pmap_predict_step(detector)(put_state(variables), images)
    assert found.boxes.shape == (8, 2, 1, 4)
    expected = detector.predict(variables, jax.tree.map(lambda x: x[3], images))
    np.testing.assert_allclose(found.boxes[3], expected.boxes, rtol=1e-5, atol=1e-6)
