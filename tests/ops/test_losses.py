import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.ops import losses


def arrays(golden, case):
    data = golden("mmdet_losses")
    return {key.split("/", 1)[1]: value for key, value in data.items() if key.startswith(case)}


def test_sigmoid_cross_entropy_equals_the_reference(golden):
    data = arrays(golden, "ce_sigmoid_rpn/")
    # One class: the reference's label 0 is the foreground.
    values = losses.sigmoid_cross_entropy(
        jnp.asarray(data["pred"][:, 0]), jnp.asarray(data["label"] == 0)
    )
    np.testing.assert_allclose(values * data["weight"], data["none"][:, 0], rtol=1e-5, atol=1e-6)
    total = jnp.sum(values * data["weight"]) / data["avg_factor"]
    np.testing.assert_allclose(total, data["loss_avg"], rtol=1e-5)


def test_softmax_cross_entropy_equals_the_reference(golden):
    data = arrays(golden, "ce_softmax/")
    values = losses.softmax_cross_entropy(jnp.asarray(data["pred"]), jnp.asarray(data["label"]))
    expected = data["none"] / data["loss_weight"]
    np.testing.assert_allclose(values * data["weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case, beta", [("smooth_l1_b1", 1.0), ("smooth_l1_b1_9", 1 / 9)])
def test_smooth_l1_equals_the_reference(golden, case, beta):
    data = arrays(golden, f"{case}/")
    values = losses.smooth_l1(jnp.asarray(data["pred"]), jnp.asarray(data["target"]), beta=beta)
    np.testing.assert_allclose(values * data["weight"], data["none"], rtol=1e-5, atol=1e-6)


def test_l1_equals_the_reference(golden):
    data = arrays(golden, "l1/")
    values = losses.l1(jnp.asarray(data["pred"]), jnp.asarray(data["target"]))
    np.testing.assert_allclose(values * data["weight"], data["none"], rtol=1e-5, atol=1e-6)


def test_accuracy_equals_the_reference(golden):
    data = arrays(golden, "accuracy/")
    found = losses.accuracy(
        jnp.asarray(data["pred"]), jnp.asarray(data["label"]), jnp.ones(len(data["label"]), bool)
    )
    np.testing.assert_allclose(found, data["top1"][0] / 100, rtol=1e-6)  # Theirs is in percent.


def test_accuracy_of_nothing_is_0():
    logits, labels = jnp.ones((3, 2)), jnp.zeros(3, jnp.int32)
    assert float(losses.accuracy(logits, labels, jnp.zeros(3, bool))) == 0


def test_sigmoid_cross_entropy_of_huge_logits_is_finite_with_its_gradient():
    logits = jnp.array([-1e4, 0.0, 1e4])
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(losses.sigmoid_cross_entropy(x, jnp.array([1.0, 0.5, 0.0])))
    )(logits)
    np.testing.assert_allclose(value, 2e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1, 0, 1])


def test_smooth_l1_meets_itself_at_beta():
    at, above = losses.smooth_l1(jnp.array([0.5, 0.5 + 1e-6]), jnp.zeros(2), beta=0.5)
    np.testing.assert_allclose([at, above], 0.25, rtol=1e-4)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        losses.smooth_l1(jnp.zeros(1), jnp.zeros(1), beta=0)


def test_masked_sum_skips_nan_and_spreads_over_trailing_axes():
    values = jnp.array([[1.0, 2], [np.nan, np.inf], [3, 4]])
    mask = jnp.array([True, False, True])
    total, gradient = jax.value_and_grad(losses.masked_sum)(values, mask)
    assert float(total) == 10
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [1, 1]])


def test_masked_sum_equals_the_sum_of_the_selected():
    rng = np.random.default_rng(0)
    values, mask = jnp.asarray(rng.normal(size=50), jnp.float32), jnp.asarray(rng.random(50) < 0.5)
    np.testing.assert_allclose(losses.masked_sum(values, mask), values[mask].sum(), rtol=1e-5)


def test_sums_of_bfloat16_are_float32():
    ones = jnp.ones(1000, jnp.bfloat16)
    assert float(losses.masked_sum(ones, jnp.ones(1000, bool))) == 1000  # Not 256.
    assert losses.l1(ones, ones).dtype == jnp.float32


@pytest.mark.parametrize("counts, expected", [([3.0, 5, 0, 0], 8), ([0.0, 0, 0, 0], 1)])
def test_the_mean_over_devices_of_sum_by_global_count_is_the_global_mean(counts, expected):
    def device(count, total):
        share = total / losses.global_count(count, "batch")
        return jax.lax.pmean(share, "batch")

    totals = jnp.arange(4.0)
    found = jax.pmap(device, axis_name="batch", devices=jax.devices()[:4])(
        jnp.array(counts), totals
    )
    np.testing.assert_allclose(found, 6 / expected)


def test_global_count_without_an_axis_is_at_least_one():
    assert float(losses.global_count(jnp.array(0))) == 1
    assert float(losses.global_count(jnp.array(7))) == 7
