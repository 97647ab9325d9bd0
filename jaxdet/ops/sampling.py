"""Which candidates train: random mixes of positives and negatives, of fixed size, or all."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdet.ops.assignment import IGNORE, NEGATIVE, POSITIVE
from jaxdet.ops.contracts import check_fractions, check_shapes

_ROW = 512  # Of a cumulative sum: far below the square of what it sums, and far above its root.


class Samples(NamedTuple):
    """The candidates that train; the order is that of the function that took them.

    Attributes:
        index: places among the candidates.
        positive: taken as a positive.
        valid: taken at all.
    """

    index: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


@check_shapes
def sample_labels(
    key: Key[Array, ""],
    labels: Int[Array, " N"],
    *,
    num_samples: int,
    positive_fraction: float,
    max_negatives_per_positive: float = -1.0,
) -> Samples:
    """Draws a random mix of positive and negative candidates of one image.

    Positives fill at most `positive_fraction` of the samples, negatives the
    rest. Positives come first, then negatives, each in random order; samples
    left over when both run out are invalid, with index 0.

    The draw depends on the key and on the labels that are not IGNORE, in their
    order: padding changes nothing, wherever it stands.

    >>> labels = jnp.array([IGNORE, NEGATIVE, IGNORE, POSITIVE])
    >>> sample_labels(jax.random.key(0), labels, num_samples=3, positive_fraction=0.5)[0]
    Array([3, 1, 0], dtype=int32)

    Args:
        key: PRNG key.
        labels: POSITIVE, NEGATIVE or IGNORE for each candidate; padding is IGNORE.
        num_samples: S, static, at most N.
        positive_fraction: upper bound in [0, 1], static. The quota of positives
            is its product with `num_samples`, rounded down; for a quota of
            exactly q (simple-faster-rcnn rounds) give (q + 0.5) / `num_samples`.
        max_negatives_per_positive: caps negatives at this times max(1,
            positives drawn), rounded down, static; negative turns it off.

    Raises:
        ValueError: if `num_samples` is not in 1..N, the fraction leaves [0, 1],
            or the cap is NaN.

    Reference: Ren et al., Faster R-CNN, sec. 3.1.3, arXiv:1506.01497;
        mmdetection 2.11, RandomSampler.
    """
    if not 0 < num_samples <= labels.shape[0]:
        raise ValueError(f"num_samples must lie in 1..{labels.shape[0]}, got {num_samples}")
    check_fractions(positive_fraction=positive_fraction)
    order = _random_order(key, labels != IGNORE)
    quota = int(num_samples * positive_fraction)
    positives, num_positives = _draw(order, labels == POSITIVE, quota)
    negatives, num_negatives = _draw(order, labels == NEGATIVE, num_samples)
    room = _room_for_negatives(num_samples, quota, max_negatives_per_positive)
    num_negatives = jnp.minimum(num_negatives, room[num_positives])

    slot = jnp.arange(num_samples)
    positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    # Slots below num_positives read the positives, later ones the negatives behind the quota.
    drawn = jnp.concatenate([positives, negatives])
    place = jnp.where(positive, slot, quota + slot - num_positives)
    index = jnp.where(valid, drawn[jnp.where(valid, place, 0)], 0)
    return Samples(index.astype(jnp.int32), positive, valid)


@check_shapes
def take_all(labels: Int[Array, " N"]) -> Samples:
    """Takes every positive and every negative, for losses that need no sampling (S = N).

    Sample i is candidate i: nothing is reordered, and IGNOREd candidates keep
    their place as invalid samples.

    >>> take_all(jnp.array([NEGATIVE, IGNORE, POSITIVE]))[1:]
    (Array([False, False,  True], dtype=bool), Array([ True, False,  True], dtype=bool))

    Reference: mmdetection 2.11, PseudoSampler.
    """
    index = jnp.arange(labels.shape[0], dtype=jnp.int32)
    return Samples(index, labels == POSITIVE, labels != IGNORE)


@check_shapes
def pad_labels(labels: Int[Array, " N"], count: int) -> Int[Array, " M"]:
    """At least `count` labels: those given, then as many IGNORE as are missing.

    With them `sample_labels` can be asked for more samples than there are
    candidates, and keeps the quota of all of them.

    >>> pad_labels(jnp.array([1, 0]), 4)
    Array([ 1,  0, -1, -1], dtype=int32)
    """
    return jnp.pad(labels, (0, max(count - labels.shape[0], 0)), constant_values=IGNORE)


def _random_order(key, usable):
    """A number for each usable candidate: the r-th usable one gets the r-th, wherever it stands."""
    # JAX's default generator counts element by element: the r-th number depends on key and r only.
    numbers = jax.random.uniform(key, usable.shape)
    return numbers[jnp.maximum(_count_up_to(usable) - 1, 0)]


def _count_up_to(usable):
    """How many are usable up to each candidate, itself among them: (N,) int32.

    A cumulative sum in rows. XLA counts one of all candidates as N * N FLOPs, a twentieth of what
    a whole training step has, and its CPU backend takes half as long again for it.
    """
    count = usable.shape[0]
    rows = jnp.pad(usable, (0, -count % _ROW)).reshape(-1, _ROW)
    within = jnp.cumsum(rows, axis=1, dtype=jnp.int32)
    totals = within[:, -1]
    before = jnp.cumsum(totals) - totals
    return (within + before[:, None]).reshape(-1)[:count]


def _draw(order, candidates, count):
    """Places of the `count` candidates that come first in a random order, and how many exist."""
    _, index = jax.lax.top_k(jnp.where(candidates, order, -1.0), count)
    return index, jnp.minimum(jnp.sum(candidates), count)


def _room_for_negatives(num_samples, quota, per_positive):
    """Most negatives for each number of drawn positives, 0..quota, in Python's exact floats."""
    if math.isnan(per_positive):
        raise ValueError(f"max_negatives_per_positive must be a number, got {per_positive}")
    room = []
    for positives in range(quota + 1):
        cap = per_positive * max(positives, 1) if per_positive >= 0 else num_samples
        room.append(int(min(cap, num_samples - positives)))
    return jnp.array(room)
