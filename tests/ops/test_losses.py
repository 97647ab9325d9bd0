from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdet.ops import losses

ROWS, CLASSES = 12, 4


@cache
def fast(function, **settings):
    """Compiled as one, with results of NumPy: op by op, dozens of small programs would be."""
    compiled = jax.jit(partial(function, **settings))
    return lambda *arrays, **named: jax.device_get(compiled(*arrays, **named))


def arrays(golden, case):
    data = golden("mmdet_losses")
    return {key.split("/", 1)[1]: value for key, value in data.items() if key.startswith(case)}


def one_hot(data):
    """Labels of the reference as targets; its background K is a row of zeros."""
    return np.equal(data["label"][:, None], np.arange(data["pred"].shape[1])).astype(np.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def reduced(values, avg_factor):
    total = fast(losses.masked_sum)(values, np.ones(values.shape, bool))
    return total / fast(losses.global_count)(avg_factor)


@pytest.mark.parametrize("case", ["ce_sigmoid_rpn", "ce_sigmoid_multi"])
def test_sigmoid_cross_entropy_equals_the_reference(golden, case):
    data = arrays(golden, f"{case}/")
    values = fast(losses.sigmoid_cross_entropy)(data["pred"], one_hot(data))
    values = values * data["weight"][:, None]
    close(values, data["none"])
    close(reduced(values, data["avg_factor"]), data["loss_avg"])
    if case == "ce_sigmoid_rpn":
        close(values.mean(), data["loss_mean"])
        close(reduced(values, 1.0), data["sum"])


def test_softmax_cross_entropy_equals_the_reference(golden):
    data = arrays(golden, "ce_softmax/")
    logits, labels = data["pred"], data["label"]
    plain = fast(losses.softmax_cross_entropy)(logits, labels) * data["loss_weight"]
    values = plain * data["weight"]
    close(values, data["none"])
    close(reduced(values, data["avg_factor"]), data["loss_avg"])
    close(values.mean(), data["loss_mean"])
    close(plain.mean(), data["loss_mean_noweight"])
    weighted = fast(losses.softmax_cross_entropy)(
        logits, labels, class_weights=data["class_weight"]
    )
    weighted = weighted * data["weight"] * data["loss_weight"]
    close(reduced(weighted, data["avg_factor"]), data["loss_avg_class_weight"])


def test_focal_loss_equals_the_reference(golden):
    data = arrays(golden, "focal/")
    logits, weight = data["pred"], data["weight"][:, None]

    def loss(alpha, gamma):
        focal = fast(losses.sigmoid_focal, alpha=alpha, gamma=gamma)
        return focal(logits, one_hot(data)) * weight

    values = loss(float(data["alpha"]), float(data["gamma"]))
    close(values, data["none"])
    close(reduced(values, data["avg_factor"]), data["loss_avg"])
    close(reduced(loss(0.5, 1.5), data["avg_factor"]), data["loss_avg_g15_a5"])


@pytest.mark.parametrize("case, beta", [("smooth_l1_b1", 1), ("smooth_l1_b1_9", 1 / 9), ("l1", 0)])
def test_l1_and_smooth_l1_equal_the_reference(golden, case, beta):
    data = arrays(golden, f"{case}/")
    loss = fast(losses.smooth_l1, beta=beta) if beta else fast(losses.l1)
    values = loss(data["pred"], data["target"]) * data["weight"]
    close(values, data["none"])
    close(reduced(values, data["avg_factor"]), data["loss_avg"])
    close(values.mean(), data["loss_mean"])
    close(reduced(values, 1.0), data["sum"])


@pytest.mark.parametrize("sigma", [1, 3])
def test_smooth_l1_over_positives_equals_simple_faster_rcnn(golden, sigma):
    """Summed over positives, divided by all that are not ignored."""
    data = golden("sfrcnn_loc_loss")
    labels = data["gt_label"]
    values = fast(losses.smooth_l1, beta=1 / sigma**2)(data["pred_loc"], data["gt_loc"])
    total = fast(losses.masked_sum)(values, labels > 0)
    close(total, data[f"smooth_l1_sum_sigma{sigma}"])
    count = fast(losses.global_count)(np.sum(labels >= 0))
    close(total / count, data[f"loss_sigma{sigma}"])
    nothing = fast(losses.masked_sum)(values, np.zeros(len(labels), bool)) / count
    assert float(nothing) == float(data["loss_no_pos_sigma3"]) == 0


def test_accuracy_equals_the_reference(golden):
    data = arrays(golden, "accuracy/")
    inputs = data["pred"], data["label"], np.ones(len(data["label"]), bool)
    percent = [100 * fast(losses.accuracy, top_k=k)(*inputs) for k in (1, 3)]
    close(percent, data["top1_3"])
    close(percent[:1], data["top1"])
    sure = fast(losses.accuracy, threshold=float(data["thresh"]))(*inputs)
    close([100 * sure], data["top1_thresh"])


@given(st.integers(0, 2**32 - 1))
def test_accuracy_and_confusion_matrix_equal_plain_counting(jitted_counts, seed):
    rng = np.random.default_rng(seed)
    # Few different logits: many ties, which the lower class wins.
    logits = rng.integers(0, 3, (ROWS, CLASSES)).astype(np.float32)
    labels = rng.integers(-1, CLASSES + 1, ROWS).astype(np.int32)
    valid = rng.random(ROWS) < rng.choice([0, 0.5, 1])
    logits[~valid] = rng.choice([np.nan, np.inf, -np.inf])
    top1, top2, above, matrix = jitted_counts(logits, labels, valid)

    expected = np.zeros((CLASSES, CLASSES), int)
    hits = np.zeros(3)
    for row in np.flatnonzero(valid):
        order = sorted(range(CLASSES), key=lambda c, row=row: (-logits[row, c], c))
        hits += [
            labels[row] == order[0],
            labels[row] in order[:2],
            labels[row] == order[0] and logits[row, order[0]] > 1,
        ]
        if 0 <= labels[row] < CLASSES:
            expected[labels[row], order[0]] += 1
    close([top1, top2, above], hits / max(valid.sum(), 1))
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.dtype == jnp.int32


@pytest.fixture(scope="module")
def jitted_counts():
    def count(logits, labels, valid):
        inputs = logits, labels, valid
        predictions = jnp.argmax(logits, axis=-1)
        return (
            losses.accuracy(*inputs),
            losses.accuracy(*inputs, top_k=2),
            losses.accuracy(*inputs, threshold=1.0),
            losses.confusion_matrix(labels, predictions, valid, num_classes=CLASSES),
        )

    return jax.jit(count)


def test_a_confusion_matrix_has_the_truth_in_rows():
    labels, predictions = np.int32([0, 0, 1, -1, 2, 1]), np.int32([1, 1, 0, 1, 1, 7])
    count = fast(losses.confusion_matrix, num_classes=2)
    matrix = count(labels, predictions, np.ones(6, bool))
    np.testing.assert_array_equal(
        matrix, [[0, 2], [1, 0]]
    )  # Labels -1, 2 and class 7 are left out.


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.5, 2])
def test_focal_loss_of_huge_logits_is_finite_with_its_gradient(gamma):
    logits = np.float32([-3e38, -1e4, -60, 0, 60, 1e4, 3e38])
    focal = partial(losses.sigmoid_focal, gamma=gamma, alpha=0.5)
    slope = fast(jax.vmap(jax.value_and_grad(focal), in_axes=(0, None)))
    for target in (0, 1):
        value, gradient = slope(logits, np.int32(target))
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        # The surely wrong logit costs what cross entropy costs, half of it by alpha.
        wrong = slice(4, None) if target == 0 else slice(0, 3)
        close(value[wrong] / np.abs(logits[wrong]), 0.5)
        close(np.abs(gradient[wrong]), 0.5)


@pytest.fixture(scope="module")
def jitted_losses():
    return jax.jit(
        lambda logits, targets, weights, labels: (
            losses.sigmoid_cross_entropy(logits, targets),
            losses.sigmoid_focal(logits, targets, alpha=0.3, gamma=0.5),
            losses.sigmoid_focal(logits, targets, alpha=0.6, gamma=3.0),
            losses.softmax_cross_entropy(logits, labels, class_weights=weights),
        )
    )


@given(st.integers(0, 2**32 - 1))
def test_classification_losses_equal_their_formulas(jitted_losses, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, CLASSES)) * rng.choice([0.1, 1, 6])
    labels = rng.integers(0, CLASSES, ROWS)
    weights = rng.uniform(0, 2, CLASSES)
    targets = np.eye(CLASSES)[labels]
    right = 1 / (1 + np.exp(-np.where(targets == 1, logits, -logits)))
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    focal = [
        -np.where(targets == 1, alpha, 1 - alpha) * (1 - right) ** gamma * np.log(right)
        for alpha, gamma in ((0.3, 0.5), (0.6, 3.0))
    ]
    classes = -weights[labels] * np.log(softmax[np.arange(ROWS), labels])
    found = jitted_losses(
        *(jnp.asarray(a, jnp.float32) for a in (logits, targets, weights)), jnp.asarray(labels)
    )
    for one, other in zip(found, (-np.log(right), *focal, classes), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


def test_focal_loss_by_hand():
    # Probability 1/4 and 3/4: .25 (3/4)^2 log 4 for the class, .75 (3/4)^2 log 4 against it.
    logits = np.log(np.float32([1 / 3, 3]))
    found = fast(losses.sigmoid_focal)(logits, np.array([True, False]))
    close(found, np.array([0.25, 0.75]) * 0.5625 * np.log(4))


def test_labels_outside_the_classes_are_clipped_and_class_weights_multiply():
    logits, labels = np.zeros((3, 2), np.float32), np.int32([-1, 1, 9])
    loss = fast(losses.softmax_cross_entropy)
    found = loss(logits, labels, class_weights=np.float32([1, 3]))
    close(found, np.log(2) * np.array([1, 3, 3]))


@pytest.mark.parametrize("given_weight, positive", [(-1.0, 1), (0.0, 1), (0.5, 0.5), (4.0, 4)])
def test_samples_weigh_0_invalid_1_negative_and_their_weight_positive(given_weight, positive):
    flags = np.array([True, True, False, False]), np.array([True, False, True, False])
    found = fast(losses.sample_weights, positive_weight=given_weight)(*flags)
    np.testing.assert_array_equal(found, [positive, 0, 1, 0])


def test_accuracy_of_nothing_is_0():
    logits, labels = np.ones((3, 2), np.float32), np.zeros(3, np.int32)
    assert fast(losses.accuracy)(logits, labels, np.zeros(3, bool)) == 0


def test_sigmoid_cross_entropy_of_huge_logits_is_finite_with_its_gradient():
    logits = np.float32([-1e4, 0, 1e4])
    slope = jax.value_and_grad(
        lambda x: jnp.sum(losses.sigmoid_cross_entropy(x, jnp.array([1.0, 0.5, 0.0])))
    )
    value, gradient = fast(slope)(logits)
    np.testing.assert_allclose(value, 2e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1, 0, 1])


def test_smooth_l1_meets_itself_at_beta_and_is_finite_at_the_largest_number():
    around = np.float32([0.5, 0.5 + 1e-6])
    values = fast(losses.smooth_l1, beta=0.5)(around, np.zeros(2, np.float32))
    np.testing.assert_allclose(values, 0.25, rtol=1e-4)
    points = np.float32([-3e38, -2, -0.5, 0.25, 3e38])
    one = jax.value_and_grad(lambda x: losses.smooth_l1(x, jnp.zeros(()), beta=0.5))
    value, slope = fast(jax.vmap(one))(points)
    close(value, [3e38, 1.75, 0.25, 0.0625, 3e38])
    close(slope, [-1, -1, -1, 0.5, 1])


def test_masked_sum_skips_nan_and_spreads_over_trailing_axes():
    values = np.float32([[1, 2], [np.nan, np.inf], [3, 4]])
    mask = np.array([True, False, True])
    total, gradient = fast(jax.value_and_grad(losses.masked_sum))(values, mask)
    assert total == 10
    np.testing.assert_array_equal(gradient, [[1, 1], [0, 0], [1, 1]])


def test_masked_sum_equals_the_sum_of_the_selected():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=50).astype(np.float32), rng.random(50) < 0.5
    total = fast(losses.masked_sum)(values, mask)
    np.testing.assert_allclose(total, values[mask].sum(), rtol=1e-5)


def test_sums_of_bfloat16_are_float32():
    ones = np.ones(1000, jnp.bfloat16)
    assert fast(losses.masked_sum)(ones, np.ones(1000, bool)) == 1000  # Not 256.
    labels = np.zeros(2, np.int32)
    weights = np.ones(2, jnp.bfloat16)
    for loss in (
        jax.eval_shape(losses.l1, ones, ones),
        jax.eval_shape(losses.sigmoid_focal, ones, ones),
        jax.eval_shape(losses.sigmoid_cross_entropy, ones, ones),
        jax.eval_shape(losses.smooth_l1, ones, ones),
        jax.eval_shape(
            losses.softmax_cross_entropy, ones[:4].reshape(2, 2), labels, class_weights=weights
        ),
    ):
        assert loss.dtype == jnp.float32


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


NAN = float("nan")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, n, b: losses.sigmoid_focal(x, x[0]), "targets wants the shape"),
        (lambda x, n, b: losses.sigmoid_focal(x, x, alpha=1.5), r"alpha must lie in \[0, 1\]"),
        (
            lambda x, n, b: losses.sigmoid_focal(x, x, gamma=NAN),
            "gamma must be at least 0, got nan",
        ),
        (lambda x, n, b: losses.smooth_l1(x, x, beta=0), "beta must be positive, got 0"),
        (lambda x, n, b: losses.smooth_l1(x, x, beta=NAN), "beta must be positive, got nan"),
        (lambda x, n, b: losses.l1(x, x[:, :1]), "targets wants the shape"),
        (lambda x, n, b: losses.sigmoid_cross_entropy(x, n), "targets wants the shape"),
        (lambda x, n, b: losses.softmax_cross_entropy(x, b[:2]), "labels wants the shape"),
        (
            lambda x, n, b: losses.softmax_cross_entropy(x, n, class_weights=x[0, :1]),
            "class_weights wants the shape",
        ),
        (
            lambda x, n, b: losses.sample_weights(b, b, positive_weight=NAN),
            "positive_weight must be finite, got nan",
        ),
        (lambda x, n, b: losses.sample_weights(b, b[:1]), "valid wants the shape"),
        (lambda x, n, b: losses.accuracy(x, n, b, top_k=3), r"top_k must lie in 1..2, got 3"),
        (lambda x, n, b: losses.accuracy(x, n, b, top_k=0), r"top_k must lie in 1..2, got 0"),
        (lambda x, n, b: losses.accuracy(x, n, b, threshold=NAN), "threshold must be a number"),
        (lambda x, n, b: losses.accuracy(x[0], n, b), "logits wants the shape"),
        (
            lambda x, n, b: losses.confusion_matrix(n, n, b, num_classes=0),
            "num_classes must be at least 1, got 0",
        ),
        (lambda x, n, b: losses.confusion_matrix(n, n, x, num_classes=2), "valid wants the shape"),
        (lambda x, n, b: losses.masked_sum(x, b[:2]), r"where \(2,\) must be the first axes"),
        (lambda x, n, b: losses.global_count(n), "count wants the shape"),
    ],
)
def test_impossible_inputs_raise_while_tracing(call, message):
    logits, labels, valid = jnp.zeros((3, 2)), jnp.zeros(3, jnp.int32), jnp.ones(3, bool)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, logits, labels, valid)
