"""Elementwise losses, counts of right and wrong classes, and the two functions that reduce them.

Losses and sums are float32 whatever comes in. No loss averages: a detector
divides a `masked_sum` by a `global_count`. Losses of boxes are in `box_losses`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jaxdet.ops.contracts import check_at_least, check_fractions, check_shapes
from jaxdet.types import AxisName


@check_shapes
def sigmoid_cross_entropy(
    logits: Float[Array, "*S"], targets: Shaped[Array, "*S"]
) -> Float[Array, "*S"]:
    """Binary cross entropy of logits with targets in [0, 1], stable for any logit.

    >>> sigmoid_cross_entropy(jnp.array([0.0, 64.0]), jnp.array([1, 0]))
    Array([ 0.6931472, 64.       ], dtype=float32)
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * targets


@check_shapes
def softmax_cross_entropy(
    logits: Float[Array, "*S K"],
    labels: Int[Array, "*S"],
    *,
    class_weights: Float[Array, " K"] | None = None,
) -> Float[Array, "*S"]:
    """Cross entropy with labels in 0..K-1; labels outside are clipped: mask them.

    Args:
        logits: of every class, background included where there is one.
        labels: the true class of each row.
        class_weights: what a row's loss is multiplied by, of its true class.

    >>> softmax_cross_entropy(jnp.array([[0.0, 0.0], [64.0, 0.0]]), jnp.array([0, 1]))
    Array([ 0.6931472, 64.       ], dtype=float32)
    """
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
    loss = -jnp.take_along_axis(log_probability, labels[..., None], axis=-1)[..., 0]
    return loss if class_weights is None else loss * class_weights.astype(jnp.float32)[labels]


@check_shapes
def sigmoid_focal(
    logits: Float[Array, "*S"],
    targets: Shaped[Array, "*S"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*S"]:
    """Binary cross entropy that counts less the surer the logit is right.

    A logit that gives its target the probability p costs
    -alpha (1 - p)^gamma log(p), with 1 - alpha in place of alpha for target 0.
    Loss and gradient are finite for every finite logit and every gamma.

    Args:
        logits: one for every class, without background.
        targets: 1 (or True) for the row's own class, else 0, as
            `jax.nn.one_hot(labels, K)` gives them: all 0 for background K.
        alpha: weight of the target 1, in [0, 1].
        gamma: of the focus, at least 0; 0 is the weighted cross entropy.

    Raises:
        ValueError: if a setting is out of range.

    Reference: Lin et al., Focal Loss, sec. 3.2 and 3.3, arXiv:1708.02002.

    >>> sigmoid_focal(jnp.array([0.0, 0.0]), jnp.array([1, 0])).round(4)
    Array([0.0433, 0.13  ], dtype=float32)
    """
    check_fractions(alpha=alpha)
    check_at_least(0, gamma=gamma)
    positive = targets.astype(bool)
    # The logit of the wrong answer: all follows from it, and no like values are subtracted.
    wrong = jnp.where(positive, -1.0, 1.0) * logits.astype(jnp.float32)
    # A power of the sigmoid itself would have an infinite slope at 0 where gamma < 1.
    focus = jnp.exp(gamma * jax.nn.log_sigmoid(wrong))
    return jnp.where(positive, alpha, 1 - alpha) * focus * jax.nn.softplus(wrong)


@check_shapes
def l1(predictions: Real[Array, "*S"], targets: Real[Array, "*S"]) -> Float[Array, "*S"]:
    """Absolute difference.

    >>> l1(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
    Array([2., 0.], dtype=float32)
    """
    return jnp.abs(predictions.astype(jnp.float32) - targets.astype(jnp.float32))


@check_shapes
def smooth_l1(
    predictions: Real[Array, "*S"], targets: Real[Array, "*S"], *, beta: float = 1.0
) -> Float[Array, "*S"]:
    """Quadratic below `beta`, linear above: .5 x^2 / beta, then |x| - .5 beta.

    Simple-faster-rcnn's sigma is beta = 1 / sigma^2.

    Raises:
        ValueError: if `beta` is not positive.

    Reference: Girshick, Fast R-CNN, eq. 3, arXiv:1504.08083.

    >>> smooth_l1(jnp.array([0.5, 3.0]), jnp.zeros(2))
    Array([0.125, 2.5  ], dtype=float32)
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    difference = l1(predictions, targets)
    # Not a `where` of two formulas: the square of a huge difference would overflow unseen.
    curved = jnp.minimum(difference, beta)
    return 0.5 * curved**2 / beta + (difference - curved)


@check_shapes
def sample_weights(
    positive: Bool[Array, "*S"], valid: Bool[Array, "*S"], *, positive_weight: float = -1.0
) -> Float[Array, "*S"]:
    """What each sample's classification loss counts: 0 invalid, 1 negative.

    Args:
        positive: samples of an object; elsewhere background.
        valid: real samples.
        positive_weight: what a positive counts; 0 or less stands for 1, as
            mmdetection's pos_weight has it.

    Raises:
        ValueError: if the weight is not finite.

    >>> sample_weights(jnp.array([True, False, True]), jnp.array([True, True, False]),
    ...                positive_weight=3.0)
    Array([3., 1., 0.], dtype=float32)
    """
    if not math.isfinite(positive_weight):
        raise ValueError(f"positive_weight must be finite, got {positive_weight}")
    weight = positive_weight if positive_weight > 0 else 1.0
    return jnp.where(valid, jnp.where(positive, jnp.float32(weight), 1.0), 0.0)


@check_shapes
def accuracy(
    logits: Float[Array, "S K"],
    labels: Int[Array, " S"],
    valid: Bool[Array, " S"],
    *,
    top_k: int = 1,
    threshold: float | None = None,
) -> Float[Array, ""]:
    """The fraction of valid rows whose label is among the largest logits, in [0, 1].

    0 with no valid row. Of equal logits the lower class comes first. The
    reference gives percents.

    Args:
        logits: logits or probabilities of every class; not NaN where valid.
        labels: true classes; one outside 0..K-1 is never found.
        valid: rows that count.
        top_k: how many of the largest are looked at, in 1..K.
        threshold: the label's own logit must also be more than this; in the
            units of `logits`. None asks for nothing more.

    Raises:
        ValueError: if `top_k` is out of range or the threshold is NaN.

    Reference: mmdetection 2.11, accuracy.

    >>> logits = jnp.array([[0.1, 0.9], [0.6, 0.4]])
    >>> accuracy(logits, jnp.array([1, 1]), jnp.array([True, True]))
    Array(0.5, dtype=float32)
    """
    if not 1 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must lie in 1..{logits.shape[-1]}, got {top_k}")
    if threshold is not None and math.isnan(threshold):
        raise ValueError(f"threshold must be a number, got {threshold}")
    best, classes = jax.lax.top_k(logits, top_k)
    hits = classes == labels[:, None]
    if threshold is not None:
        hits &= best > threshold
    return masked_sum(jnp.any(hits, axis=-1), valid) / jnp.maximum(jnp.sum(valid), 1)


@check_shapes
def confusion_matrix(
    labels: Int[Array, " S"],
    predictions: Int[Array, " S"],
    valid: Bool[Array, " S"],
    *,
    num_classes: int,
) -> Int[Array, "K K"]:
    """How often each class was taken for each other: rows are the truth, columns predictions.

    Counts are integers, so that matrices of several devices add up exactly and
    in any order.

    Args:
        labels: true classes; samples whose label is outside 0..K-1 are left out.
        predictions: predicted classes; left out likewise.
        valid: samples that count.
        num_classes: K, background included where it is a class.

    Raises:
        ValueError: if `num_classes` is below 1.

    >>> confusion_matrix(jnp.array([0, 1, 1, -1]), jnp.array([0, 1, 0, 0]), jnp.ones(4, bool),
    ...                  num_classes=2)
    Array([[1, 0],
           [1, 1]], dtype=int32)
    """
    check_at_least(1, num_classes=num_classes)
    counted = valid
    for classes in (labels, predictions):
        counted = counted & (classes >= 0) & (classes < num_classes)
    row, column = (jnp.where(counted, classes, 0) for classes in (labels, predictions))
    matrix = jnp.zeros((num_classes, num_classes), jnp.int32)
    return matrix.at[row, column].add(counted.astype(jnp.int32))


@check_shapes
def masked_sum(values: Shaped[Array, "*S"], where: Bool[Array, "..."]) -> Float[Array, ""]:
    """Sum of the values where the mask is set; the mask may lack trailing axes.

    Values outside the mask may be anything, NaN included.

    Raises:
        ValueError: if the mask's axes are not the first ones of the values.

    >>> masked_sum(jnp.array([[1.0, 2.0], [jnp.nan, 3.0]]), jnp.array([True, False]))
    Array(3., dtype=float32)
    """
    if values.shape[: where.ndim] != where.shape:
        raise ValueError(
            f"masked_sum: where {where.shape} must be the first axes of values {values.shape}"
        )
    where = where.reshape(where.shape + (1,) * (values.ndim - where.ndim))
    return jnp.sum(jnp.where(where, values.astype(jnp.float32), 0.0))


@check_shapes
def global_count(
    count: Shaped[Array, ""] | float, axis_name: AxisName | None = None
) -> Float[Array, ""]:
    """What a device divides its sum by so that the mean over devices is the global mean.

    The count over all devices, at least 1, divided by their number;
    without an axis, the count itself. An axis that counts by itself is asked.

    >>> global_count(jnp.array(12)), global_count(jnp.array(0))
    (Array(12., dtype=float32), Array(1., dtype=float32))
    """
    count = jnp.asarray(count, jnp.float32)
    if axis_name is None:
        return jnp.maximum(count, 1)
    if not isinstance(axis_name, str):
        return axis_name.global_count(count)
    return jnp.maximum(jax.lax.psum(count, axis_name), 1) / jax.lax.axis_size(axis_name)
