"""Random mixes of positive and negative candidates, of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxdet.ops.assignment import NEGATIVE, POSITIVE


class Samples(NamedTuple):
    """Drawn candidates: positives, then negatives, then invalid slots.

    Attributes:
        index: places among the candidates; 0 where invalid.
        positive: drawn as a positive.
        valid: drawn at all.
    """

    index: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]


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
    rest. Samples left over when both run out are invalid. The draw depends on
    the key and the labels only: candidates padded at the end change nothing.

    Args:
        key: PRNG key.
        labels: POSITIVE, NEGATIVE or IGNORE for each candidate; padding is IGNORE.
        num_samples: S, static, at most N.
        positive_fraction: upper bound in [0, 1], static.
        max_negatives_per_positive: caps negatives at this times max(1,
            positives drawn), rounded down; negative turns it off.

    Raises:
        ValueError: if `num_samples` exceeds N or the fraction leaves [0, 1].

    Reference: Ren et al., Faster R-CNN, sec. 3.1.3, arXiv:1506.01497;
        mmdetection 2.11, RandomSampler.
    """
    if not 0 < num_samples <= labels.shape[0]:
        raise ValueError(f"num_samples must lie in 1..{labels.shape[0]}, got {num_samples}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must lie in [0, 1], got {positive_fraction}")
    # One number a candidate, the same whatever follows it (threefry counts element by element).
    order = jax.random.uniform(key, labels.shape)
    quota = int(num_samples * positive_fraction)
    positives, num_positives = _draw(order, labels == POSITIVE, quota)
    negatives, num_negatives = _draw(order, labels == NEGATIVE, num_samples)
    num_negatives = jnp.minimum(num_negatives, num_samples - num_positives)
    if max_negatives_per_positive >= 0:
        cap = max_negatives_per_positive * jnp.maximum(num_positives, 1)
        num_negatives = jnp.minimum(num_negatives, jnp.floor(cap).astype(jnp.int32))

    slot = jnp.arange(num_samples)
    positive = slot < num_positives
    valid = slot < num_positives + num_negatives
    # Slots below num_positives read the positives, later ones the negatives behind the quota.
    drawn = jnp.concatenate([positives, negatives])
    place = jnp.where(positive, slot, quota + slot - num_positives)
    index = jnp.where(valid, drawn[jnp.where(valid, place, 0)], 0)
    return Samples(index.astype(jnp.int32), positive, valid)


def _draw(order, candidates, count):
    """Places of the `count` candidates that come first in a random order, and how many exist."""
    _, index = jax.lax.top_k(jnp.where(candidates, order, -1.0), count)
    return index, jnp.minimum(jnp.sum(candidates), count)
