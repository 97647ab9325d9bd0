import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.training.optimizer import GRADIENT_NORM, build_optimizer
from jaxdet.types import UserError

PLAIN = dict(learning_rate=0.1, base_batch_size=8, batch_size=8, num_steps=100, schedule="constant")


def params():
    return {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }


def run(gradients, **settings):
    """The parameters after one update with each of the gradients."""
    tx, _ = build_optimizer(**PLAIN | settings)
    now, state = params(), None
    state = tx.init(now)
    for number in gradients:
        gradient = jax.tree.map(partial(jnp.full_like, fill_value=number), now)
        updates, state = tx.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    return now, state


def rates(steps, **settings):
    _, schedule = build_optimizer(**PLAIN | settings)
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_the_rate_grows_linearly_with_the_batch_size():
    np.testing.assert_allclose(rates([0, 99], batch_size=2), [0.025, 0.025])


def test_multistep_drops_the_rate_at_its_milestones():
    found = rates([0, 59, 60, 79, 80], schedule="multistep", milestones=(60, 80))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    found = rates([59, 60], schedule="multistep", milestones=(60, 60))
    np.testing.assert_allclose(found, [0.1, 0.001], rtol=1e-6)
    with pytest.raises(UserError, match=r"milestones wants steps from 1 on, found \(60, -5\)"):
        rates([0], schedule="multistep", milestones=(60, -5))


def test_cosine_ends_at_its_final_ratio():
    found = rates([0, 50, 100], schedule="cosine", final_ratio=0.2)
    np.testing.assert_allclose(found, [0.1, 0.06, 0.02], rtol=1e-6)


def test_warmup_multiplies_the_schedule_and_does_not_shift_it():
    settings = dict(schedule="multistep", milestones=(5, 20), warmup_steps=10, warmup_ratio=0.2)
    # 0.2 + 0.8 * step / 10 of the rate, with the drop at 5 inside of the warmup.
    found = rates([0, 4, 5, 9, 10, 20], **settings)
    np.testing.assert_allclose(found, [0.02, 0.052, 0.006, 0.0092, 0.01, 0.001], rtol=1e-5)


def test_warmup_of_a_cosine_keeps_the_cosine_from_step_0():
    found = rates([0, 50], schedule="cosine", warmup_steps=50, warmup_ratio=0.0)
    np.testing.assert_allclose(found, [0.0, 0.05], atol=1e-8)


def yolox_rate(step, *, rate, num_steps, warmup_steps, final_steps, final_ratio):
    """YOLOX's rule in plain Python; it warms up from 0."""
    lowest = rate * final_ratio
    if step <= warmup_steps and warmup_steps:
        return rate * (step / warmup_steps) ** 2
    if step >= num_steps - final_steps:
        return lowest
    length = num_steps - warmup_steps - final_steps
    return lowest + 0.5 * (rate - lowest) * (
        1.0 + math.cos(math.pi * (step - warmup_steps) / length)
    )


@pytest.mark.parametrize(
    "num_steps, warmup_steps, final_steps",
    [(100, 10, 20), (100, 10, 0), (100, 0, 20), (30, 10, 20), (20, 20, 0), (20, 0, 20), (1, 0, 0)],
)
def test_warmup_cosine_is_the_rule_of_yolox(num_steps, warmup_steps, final_steps):
    settings = dict(
        num_steps=num_steps,
        warmup_steps=warmup_steps,
        final_steps=final_steps,
        final_ratio=0.05,
    )
    steps = range(num_steps + 3)
    found = rates(steps, schedule="warmup_cosine", warmup_ratio=0.7, **settings)
    expected = [yolox_rate(step, rate=0.1, **settings) for step in steps]
    if num_steps == warmup_steps + final_steps:
        # YOLOX has the whole rate once more; here the final steps are as many as are wanted.
        expected[warmup_steps] = 0.1 * 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_warmup_cosine_at_its_borders():
    settings = dict(num_steps=40, warmup_steps=10, final_steps=10, final_ratio=0.5)
    found = rates([0, 5, 10, 20, 30, 39], schedule="warmup_cosine", **settings)
    # Half of the warmup is a quarter of the rate, half of the cosine the middle of 0.1 and 0.05.
    np.testing.assert_allclose(found, [0, 0.025, 0.1, 0.075, 0.05, 0.05], rtol=1e-6)


def test_parts_longer_than_the_run_are_named():
    message = (
        r"config.optimizer.warmup_steps \+ config.final_steps wants at most config.num_steps, "
        r"100, found 60 \+ 41"
    )
    with pytest.raises(UserError, match=message):
        build_optimizer(**PLAIN | dict(schedule="warmup_cosine"), warmup_steps=60, final_steps=41)


def test_sgd_adds_decay_to_the_gradient_before_the_momentum():
    # g = 1 + 0.5 p; v = 0.9 v + g; p = p - 0.1 v, by hand from p = 1.
    # g = 1.5, v = 1.5, p = 0.85; g = 1.425, v = 2.775, p = 0.5725.
    found, _ = run([1.0, 1.0], weight_decay=0.5)
    np.testing.assert_allclose(found["conv"]["kernel"], 0.5725, rtol=1e-6)


def test_nesterov_looks_ahead():
    # v = 1, p = 1 - 0.1 (1 + 0.9); v = 1.9, p = 0.81 - 0.1 (1 + 0.9 * 1.9).
    found, _ = run([1.0, 1.0], weight_decay=0.0, nesterov=True)
    np.testing.assert_allclose(found["conv"]["kernel"], 0.539, rtol=1e-6)


def test_adamw_decays_apart_from_the_moments():
    # The first step of Adam is the rate; the decay adds rate * decay * p.
    found, _ = run([3.0], name="adamw", weight_decay=0.5)
    np.testing.assert_allclose(found["conv"]["kernel"], 1 - 0.1 - 0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize("decay_biases", [True, False])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_biases_and_scales_of_norms_decay_only_where_asked(decay_biases, decay_norms):
    found, _ = run([0.0], weight_decay=0.5, decay_biases=decay_biases, decay_norms=decay_norms)
    np.testing.assert_allclose(found["conv"]["kernel"], 0.95, rtol=1e-6)
    bias, scale = 0.95 if decay_biases else 1.0, 0.95 if decay_norms else 1.0
    np.testing.assert_allclose(found["conv"]["bias"], bias, rtol=1e-6)
    np.testing.assert_allclose(found["norm"]["bias"], bias, rtol=1e-6)
    np.testing.assert_allclose(found["norm"]["scale"], scale, rtol=1e-6)


def torch_sgd(values, gradients, rates, *, momentum, nesterov, decay):
    """torch.optim.SGD on one parameter group."""
    velocity = np.zeros_like(values)
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = gradient + decay * values
        velocity = momentum * velocity + gradient
        values = values - rate * (gradient + momentum * velocity if nesterov else velocity)
    return values


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("frozen", [(), ("norm",)])
@pytest.mark.parametrize("decay_norms, bias_rate", [(True, 2.0), (False, 1.0)])
def test_groups_of_parameters_move_as_in_torch(nesterov, frozen, decay_norms, bias_rate):
    """As simple-faster-rcnn groups them (biases: twice the rate, no decay), and as YOLOX does."""
    rng = np.random.default_rng(0)
    first = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params())
    gradients = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), first) for _ in range(5)]
    tx, schedule = build_optimizer(
        **PLAIN | dict(schedule="multistep", milestones=(3,), warmup_steps=2),
        nesterov=nesterov,
        weight_decay=0.3,
        decay_biases=False,
        decay_norms=decay_norms,
        bias_rate=bias_rate,
        frozen=frozen,
    )
    now = jax.tree.map(jnp.float32, first)
    state = tx.init(now)
    for gradient in gradients:
        updates, state = tx.update(jax.tree.map(jnp.float32, gradient), state, now)
        now = optax.apply_updates(now, updates)
    rates = np.array([schedule(step) for step in range(5)], np.float64)
    assert rates[2] > rates[1] and rates[2] > 5 * rates[3], "the warmup and the drop count"

    for module, name in [("conv", "kernel"), ("conv", "bias"), ("norm", "scale"), ("norm", "bias")]:
        expected = first[module][name]
        decays = name == "kernel" or (name == "scale" and decay_norms)
        if module not in frozen:
            expected = torch_sgd(
                expected,
                [gradient[module][name] for gradient in gradients],
                rates * (bias_rate if name == "bias" else 1),
                momentum=0.9,
                nesterov=nesterov,
                decay=0.3 if decays else 0,
            )
        np.testing.assert_allclose(now[module][name], expected, rtol=1e-5, atol=1e-6)


def test_the_rate_of_biases_holds_for_adamw_too():
    # The first step of Adam is the rate, the decay adds rate * decay * p: both twice.
    found, _ = run([3.0], name="adamw", weight_decay=0.5, bias_rate=2.0)
    np.testing.assert_allclose(found["conv"]["bias"], 1 - 2 * (0.1 + 0.1 * 0.5), rtol=1e-5)
    np.testing.assert_allclose(found["conv"]["kernel"], 1 - 0.1 - 0.1 * 0.5, rtol=1e-5)


def test_clipping_bounds_the_norm_and_reports_it_unclipped():
    # Ten gradients of 1: the norm is sqrt(10).
    found, state = run([1.0], weight_decay=0.0, clip_norm=1.0)
    np.testing.assert_allclose(found["conv"]["bias"], 1 - 0.1 / np.sqrt(10), rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, GRADIENT_NORM), np.sqrt(10), rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_never_move(name):
    found, state = run([1.0, 2.0], name=name, weight_decay=0.5, frozen=("conv/kernel",))
    np.testing.assert_array_equal(found["conv"]["kernel"], 1.0)
    assert np.all(found["conv"]["bias"] < 1)
    # Six gradients of 2: the frozen four count for nothing.
    np.testing.assert_allclose(optax.tree.get(state, GRADIENT_NORM), np.sqrt(24), rtol=1e-6)


def test_a_frozen_path_ends_at_a_slash():
    tx, _ = build_optimizer(**PLAIN, frozen=("conv/ker",))
    with pytest.raises(UserError, match=r"'conv/ker' names no parameter; found .*'conv'"):
        tx.init(params())


def test_the_backward_pass_of_frozen_parts_is_not_computed():
    def flops(frozen):
        tx, _ = build_optimizer(**PLAIN, frozen=frozen)
        weights = {"a": jnp.ones((32, 32)), "b": jnp.ones((32, 32)), "c": jnp.ones((32, 32))}

        def step(weights, state, x):
            def loss(w):
                return jnp.sum(jnp.tanh(jnp.tanh(x @ w["a"]) @ w["b"]) @ w["c"])

            updates, state = tx.update(jax.grad(loss)(weights), state, weights)
            return optax.apply_updates(weights, updates), state

        lowered = jax.jit(step).lower(weights, tx.init(weights), jnp.ones((32, 32)))
        return lowered.compile().cost_analysis()["flops"]

    # Matrix products: 2 forward, 3 + 2 backward; with a and b frozen 2 forward, 1 backward.
    assert flops(("a", "b")) < 0.6 * flops(())


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(name="sdg"), r"unknown optimizer.name 'sdg'; known: sgd, adamw; did you mean 'sgd'"),
        (dict(schedule="linear"), r"unknown optimizer.schedule 'linear'; known: constant, cosine"),
    ],
)
def test_unknown_names_list_the_known_ones(settings, message):
    with pytest.raises(UserError, match=message):
        build_optimizer(**PLAIN | settings)
