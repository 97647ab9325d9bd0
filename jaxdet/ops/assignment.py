"""Which ground truth each anchor or proposal learns."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops import boxes as box_ops

POSITIVE = 1
NEGATIVE = 0
IGNORE = -1


class Assignment(NamedTuple):
    """The verdict on each candidate.

    Attributes:
        labels: POSITIVE, NEGATIVE or IGNORE.
        index: the ground-truth slot that a positive learns; 0 elsewhere.
        overlaps: the best IoU with any ground truth, -1 where ignored.
    """

    labels: Int[Array, " N"]
    index: Int[Array, " N"]
    overlaps: Float[Array, " N"]


def assign_by_iou(
    candidates: Float[Array, "N 4"],
    candidates_valid: Bool[Array, " N"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, " G"],
    crowd: Bool[Array, " G"],
    *,
    positive_iou: float,
    negative_iou: float | tuple[float, float],
    min_positive_iou: float = 0.0,
    match_low_quality: bool = True,
    match_all_ties: bool = True,
    ignore_iof_threshold: float = -1.0,
    ignore_by_candidate: bool = True,
) -> Assignment:
    """Assigns candidates to the ground truth that they overlap most.

    In this order: overlap in the negative range is negative; overlap of at
    least `positive_iou` is positive for its best ground truth (the first of
    equals); then, with `match_low_quality`, each ground truth takes the
    candidates whose overlap equals its best, the last ground truth winning.
    Without ground truth every valid candidate is negative.

    A ground truth that overlaps nothing matches nothing. The reference, with
    `min_positive_iou` 0, gives it every candidate of overlap 0.

    Args:
        candidates: anchors or proposals.
        candidates_valid: invalid ones are ignored and are nobody's best.
        boxes: ground truth, crowd regions included.
        valid: real objects.
        crowd: ignored regions; no slot is both valid and crowd.
        positive_iou: lowest overlap of a positive, in [0, 1].
        negative_iou: negatives overlap less than this, or lie in [low, high).
        min_positive_iou: lowest best overlap for a low-quality match.
        match_low_quality: give each ground truth its best candidates.
        match_all_ties: all candidates that tie for best, not only the first.
        ignore_iof_threshold: candidates that lie by more than this fraction in
            a crowd region are ignored; 0 or less turns it off.
        ignore_by_candidate: the fraction is of the candidate's area, else of
            the crowd region's.

    Raises:
        ValueError: if a threshold lies outside [0, 1].

    Reference: mmdetection 2.11, MaxIoUAssigner; Ren et al., Faster R-CNN,
        sec. 3.1.2, arXiv:1506.01497.
    """
    low, high = negative_iou if isinstance(negative_iou, tuple) else (0.0, negative_iou)
    _check_fractions(
        positive_iou=positive_iou, negative_iou=high, min_positive_iou=min_positive_iou
    )
    usable = candidates_valid
    if ignore_iof_threshold > 0:
        usable &= ~_in_crowd(candidates, boxes, crowd, ignore_iof_threshold, ignore_by_candidate)
    # -1, not 0, for padding: 0 is an overlap that negatives have and that ties can equal.
    overlaps = jnp.where(
        valid[:, None] & usable[None], box_ops.pairwise_iou(boxes, candidates), -1.0
    )
    best = jnp.max(overlaps, axis=0)
    index = jnp.argmax(overlaps, axis=0)
    labels = jnp.full(best.shape, IGNORE, jnp.int32)
    labels = jnp.where((best >= low) & (best < high), NEGATIVE, labels)
    labels = jnp.where(best >= positive_iou, POSITIVE, labels)
    if match_low_quality:
        owner = _low_quality_owner(overlaps, min_positive_iou, match_all_ties)
        labels = jnp.where(owner >= 0, POSITIVE, labels)
        index = jnp.where(owner >= 0, owner, index)

    # With nothing to learn from, crowd regions do not ignore either (as the reference has it).
    no_objects = ~jnp.any(valid)
    labels = jnp.where(no_objects & candidates_valid, NEGATIVE, labels)
    best = jnp.where(no_objects & candidates_valid, 0.0, best)
    return Assignment(labels, jnp.where(labels == POSITIVE, index, 0).astype(jnp.int32), best)


def _in_crowd(candidates, boxes, crowd, threshold, by_candidate):
    if by_candidate:
        fraction = box_ops.pairwise_iof(candidates, boxes)
    else:
        fraction = box_ops.pairwise_iof(boxes, candidates).T
    return jnp.any(crowd & (fraction > threshold), axis=1)


def _low_quality_owner(overlaps, min_positive_iou, match_all_ties):
    """The last ground truth whose best overlap a candidate has, or -1: (N,)."""
    best = jnp.max(overlaps, axis=1)
    eligible = (best > 0) & (best >= min_positive_iou)
    if match_all_ties:
        takes = overlaps == best[:, None]
    else:
        takes = jnp.arange(overlaps.shape[1]) == jnp.argmax(overlaps, axis=1)[:, None]
    slots = jnp.arange(overlaps.shape[0])[:, None]
    return jnp.max(jnp.where(takes & eligible[:, None], slots, -1), axis=0)


def _check_fractions(**thresholds):
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
