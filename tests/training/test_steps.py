from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.training import state as states
from jaxdet.training.multiscale import draw_height, resize_batch
from jaxdet.training.optimizer import build_optimizer
from jaxdet.training.steps import check_division, pmap_predict_step, pmap_train_step, put_state
from jaxdet.types import Metrics, UserError

SETTINGS = dict(learning_rate=0.1, base_batch_size=8, batch_size=8, num_steps=10, warmup_steps=4)

# What jax.monitoring calls the work of the compiler.
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """What is compiled during a test, one element each."""
    events = []

    def listen(event, seconds, **details):
        if event == COMPILED:
            events.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def train(toy):
    """Trains two steps on some devices; gives the state and the last step's metrics."""

    def run(devices, *, norm=False, steps=2, change=lambda detector: detector, ema_decay=0.0):
        detector = change(toy.detector(norm=norm))
        tx, schedule = build_optimizer(**SETTINGS)
        devices = jax.local_devices()[:devices]
        step = pmap_train_step(
            detector, tx, schedule, seed=7, devices=devices, ema_decay=ema_decay, ema_ramp=2
        )
        state = put_state(states.create(toy.variables(detector), tx, ema=ema_decay > 0), devices)
        for n in range(steps):
            state, metrics = step(state, toy.batch(n), n)
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
        def loss(variables, batch, key, *, final, axis_name):
            device = jax.lax.axis_index(axis_name).astype(jnp.float32)
            total, (metrics, _) = detector.loss(variables, batch, key, axis_name=axis_name)
            metrics = Metrics({"mean": device}, {"count": device})
            stats = jax.tree.map(lambda x: x * 0 + device, variables["batch_stats"])
            return total + device, (metrics, stats)

        return detector._replace(loss=loss)

    state, metrics = train(8, norm=True, steps=1, change=change, ema_decay=0.5)
    assert metrics.means["mean"] == 3.5
    assert metrics.counts["count"] == 28
    assert metrics.means["loss"] > 3.5
    for leaf in jax.tree.leaves(state.batch_stats):
        np.testing.assert_array_equal(leaf, 3.5)
    # The mean begins at 0 and keeps 0.5 (1 - exp(-1 / 2)) of that.
    expected = (1 - 0.5 * (1 - np.exp(-0.5))) * 3.5
    np.testing.assert_allclose(state.ema["batch_stats"]["bn"]["mean"], expected, rtol=1e-6)


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
    after, _ = pmap_train_step(detector, tx, schedule, seed=0)(placed, toy.batch(0), 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert int(after.step) == 1


def test_averages_are_those_of_a_slow_twin(toy):
    detector = toy.detector(norm=True)
    tx, schedule = build_optimizer(**SETTINGS, frozen=("head",))
    devices = jax.local_devices()[:1]
    settings = dict(ema_decay=0.9, ema_ramp=3)
    step = pmap_train_step(detector, tx, schedule, seed=0, devices=devices, **settings)
    state = put_state(states.create(toy.variables(detector), tx, ema=True), devices)
    twin = jax.tree.map(partial(np.array, dtype=np.float64), state.variables)
    first = jax.tree.map(np.array, state.variables)
    for n in range(4):
        state, _ = step(state, toy.batch(n), n)
        d = 0.9 * (1 - np.exp(-(n + 1) / 3))
        twin = jax.tree.map(lambda x, new, d=d: d * x + (1 - d) * new, twin, state.variables)
    assert_trees_close(state.eval_variables, twin, rtol=1e-5, atol=1e-7)
    kernels = [
        v["params"]["conv"]["kernel"] for v in (first, state.eval_variables, state.variables)
    ]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(kernels))
    frozen = state.eval_variables["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, frozen, first["params"]["head"])


def test_without_averages_the_variables_are_evaluated(toy):
    tx, _ = build_optimizer(**SETTINGS)
    for norm in (False, True):
        variables = toy.variables(toy.detector(norm=norm))
        for ema in (False, True):
            state = states.create(variables, tx, ema=ema)
            assert set(state.eval_variables) == set(state.variables) == set(variables)
            assert set(state.ema) == ({"params", "batch_stats"} if ema else set())


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0])
def test_a_decay_out_of_its_range_is_named(toy, ema_decay):
    tx, schedule = build_optimizer(**SETTINGS)
    with pytest.raises(ValueError, match=f"ema_decay must be .* less than 1, found {ema_decay}"):
        pmap_train_step(toy.detector(), tx, schedule, seed=0, ema_decay=ema_decay)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_decay_and_a_state_that_do_not_fit_are_refused(toy, ema_decay):
    tx, schedule = build_optimizer(**SETTINGS)
    detector = toy.detector()
    state = states.create(toy.variables(detector), tx, ema=not ema_decay)
    step = pmap_train_step(detector, tx, schedule, seed=0, ema_decay=ema_decay)
    with pytest.raises(ValueError, match=f"ema_decay is {ema_decay}, and the state's averages"):
        step(put_state(state), toy.batch(0), 0)


def test_heights_out_of_their_range_are_named(toy):
    tx, schedule = build_optimizer(**SETTINGS)
    with pytest.raises(UserError, match=r"config.multiscale_heights .*found \(32, 40\)"):
        pmap_train_step(toy.detector(), tx, schedule, seed=0, heights=(32, 40))


def test_a_step_resizes_its_batch_and_leaves_one_of_its_own_height(toy):
    detector = toy.detector()
    tx, schedule = build_optimizer(**SETTINGS)
    start = states.create(toy.variables(detector), tx)
    devices = jax.local_devices()[:1]
    large = jax.device_get(jax.jit(partial(resize_batch, height=32))(toy.batch(0)))
    plain, resizing = (
        pmap_train_step(detector, tx, schedule, seed=0, devices=devices, heights=heights)
        for heights in ((), (32,))
    )
    expected, own, resized = (
        jax.device_get(step(put_state(start, devices), batch, 0))
        for step, batch in [(plain, large), (resizing, large), (resizing, toy.batch(0))]
    )
    jax.tree.map(np.testing.assert_array_equal, own, expected)
    assert_trees_close(resized, expected, rtol=1e-5, atol=1e-7)


def test_each_height_is_compiled_once(toy):
    detector, traced = toy.detector(), []

    def loss(variables, batch, *arguments, **settings):
        traced.append(batch.images.pixels.shape)
        return detector.loss(variables, batch, *arguments, **settings)

    tx, schedule = build_optimizer(**SETTINGS)
    settings = dict(heights=(32, 64, 96), height_every=1)
    step = pmap_train_step(detector._replace(loss=loss), tx, schedule, seed=0, **settings)
    state = put_state(states.create(toy.variables(detector), tx))
    drawn = [draw_height(0, n, heights=(32, 64, 96), every=1) for n in range(12)]
    compiled = []

    def listen(event, seconds, **details):
        if event == COMPILED:
            compiled.append(drawn[n])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for n, height in enumerate(drawn):
            state, _ = step(state, toy.batch(n), n)
            assert traced[-1] == (1, height, height, 3) or height in drawn[:n]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traced) == len(set(traced)) == len(set(drawn)) == 3
    assert sorted(compiled) == [32, 64, 96]


def test_steps_after_the_first_do_not_compile(toy, compiled):
    """Whatever the number of objects, and although the first state comes from `put_state`."""
    detector = toy.detector(norm=True)
    tx, schedule = build_optimizer(**SETTINGS)
    step = pmap_train_step(detector, tx, schedule, seed=0)
    state = put_state(states.create(toy.variables(detector), tx))
    batches = [toy.batch(n) for n in range(3)]
    batches[1] = batches[1]._replace(valid=np.zeros_like(batches[1].valid))
    before = len(compiled)
    state, _ = step(state, batches[0], 0)
    first = len(compiled)
    for n, batch in enumerate(batches[1:], 1):
        state, _ = step(state, batch, n)
    assert len(compiled) == first > before


def test_a_step_tells_the_loss_whether_it_is_one_of_the_final_ones(toy):
    detector, told = toy.detector(), []

    def loss(variables, batch, key, *, final, axis_name):
        told.append(final)
        total, (metrics, stats) = detector.loss(variables, batch, key, axis_name=axis_name)
        metrics = metrics._replace(means={"final": jnp.where(final, 1.0, 0.0)})
        return total, (metrics, stats)

    tx, schedule = build_optimizer(**SETTINGS)
    devices = jax.local_devices()[:2]
    for start, wanted in ((None, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (0, [1, 1, 1, 1])):
        step = pmap_train_step(
            detector._replace(loss=loss), tx, schedule, seed=0, final_start=start, devices=devices
        )
        state, found = put_state(states.create(toy.variables(detector), tx), devices), []
        for n in range(4):
            state, metrics = step(state, toy.batch(n), n)
            found.append(float(metrics.means["final"]))
        assert found == wanted
    # Traced once each; without final steps there is nothing to trace.
    assert len(told) == 3
    assert told[0] is False and all(isinstance(final, jax.core.Tracer) for final in told[1:])


def test_devices_get_views_of_their_rows(toy, monkeypatch):
    detector, given = toy.detector(), []

    def pmap(function, **_):
        def mapped(variables, images):
            given.append(images)
            return jax.vmap(function, in_axes=(None, 0))(variables, images)

        return mapped

    monkeypatch.setattr(jax, "pmap", pmap)
    images = toy.batch(0, size=24).images
    pmap_predict_step(detector)(toy.variables(detector), images)
    for whole, shares in zip(images[:3], given[0][:3], strict=True):
        np.testing.assert_array_equal(shares[2], whole[6:9])
        assert shares.shape[0] == 8 and np.shares_memory(shares, whole)


def test_a_batch_that_does_not_divide_among_the_devices_is_refused(toy):
    detector = toy.detector()
    tx, schedule = build_optimizer(**SETTINGS)
    state, batch = states.create(toy.variables(detector), tx), toy.batch(0, size=9)
    message = "a batch of 9 does not divide among 8 devices"
    with pytest.raises(ValueError, match=message):
        pmap_train_step(detector, tx, schedule, seed=0)(state, batch, 0)
    with pytest.raises(ValueError, match=message):
        pmap_predict_step(detector)(state.variables, batch.images)
    with pytest.raises(UserError, match="config.batch_size 9 does not divide among 2 devices"):
        check_division(9, jax.devices()[:2], name="config.batch_size")
    check_division(9, jax.devices()[:3])


@pytest.mark.parametrize("devices", [1, 8])
def test_predictions_are_flat_in_order_and_left_on_the_devices(toy, devices):
    detector = toy.detector()
    variables = toy.variables(detector)
    images = toy.batch(0, size=16).images
    devices = jax.local_devices()[:devices]
    found = pmap_predict_step(detector, devices=devices)(put_state(variables, devices), images)
    assert found.boxes.shape == (16, 1, 4)
    assert all(field.sharding.device_set == set(devices) for field in found)
    assert_trees_close(found, detector.predict(variables, images), rtol=1e-5, atol=1e-6)
    assert len(np.unique(found.boxes, axis=0)) == 16


def test_predictions_after_the_first_do_not_compile(toy, compiled):
    detector = toy.detector()
    variables, predict = put_state(toy.variables(detector)), pmap_predict_step(detector)
    before = len(compiled)
    predict(variables, toy.batch(0).images)
    first = len(compiled)
    predict(variables, toy.batch(1).images)
    assert len(compiled) == first > before
