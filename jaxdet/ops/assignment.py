"""Which ground truth each anchor or proposal learns."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.contracts import check_fractions, check_shapes

POSITIVE = 1
NEGATIVE = 0
IGNORE = -1

# Overlaps that are held at once, 16 MB: with more, the ground truth comes in blocks of slots, of
# eights as a TPU's tiles have rows.
_MAX_OVERLAPS = 2**22


class Assignment(NamedTuple):
    """The verdict on each candidate.

    Attributes:
        labels: POSITIVE, NEGATIVE or IGNORE.
        index: the ground-truth slot that a positive learns; 0 elsewhere.
        overlaps: the best IoU with any ground truth; -1 for candidates that are not
            valid or lie in a crowd region, 0 without ground truth.
    """

    labels: Int[Array, " N"]
    index: Int[Array, " N"]
    overlaps: Float[Array, " N"]


@check_shapes
def assign_by_iou(
    candidates: Real[Array, "N 4"],
    candidates_valid: Bool[Array, " N"],
    boxes: Real[Array, "G 4"],
    valid: Bool[Array, " G"],
    crowd: Bool[Array, " G"] | None = None,
    *,
    positive_iou: float,
    negative_iou: float | tuple[float, float],
    min_positive_iou: float = 0.0,
    match_low_quality: bool = True,
    match_all_ties: bool = True,
    reassign_low_quality: bool = True,
    ignore_iof_threshold: float = -1.0,
    ignore_by_candidate: bool = True,
) -> Assignment:
    """Assigns candidates to the ground truth that they overlap most.

    In this order: overlap in the negative range is negative; overlap of at
    least `positive_iou` is positive for its best ground truth (the first of
    equals); then, with `match_low_quality`, each ground truth takes the
    candidates whose overlap equals its best, the last ground truth winning.
    Without ground truth every valid candidate is negative. No gradient flows
    back from an assignment.

    A ground truth that overlaps nothing matches nothing. mmdetection, with
    `min_positive_iou` 0, and simple-faster-rcnn give it every candidate of
    overlap 0. The labels of simple-faster-rcnn's anchors are otherwise those of
    `min_positive_iou` 0 without `reassign_low_quality`.

    >>> boxes = jnp.array([[0, 0, 4, 4], [8, 8, 9, 9]])
    >>> real = jnp.array([True, True])
    >>> truth = jnp.array([[0, 0, 4, 3]])
    >>> settings = dict(positive_iou=0.7, negative_iou=0.3)
    >>> assign_by_iou(boxes, real, truth, real[:1], ~real[:1], **settings).labels
    Array([1, 0], dtype=int32)

    Args:
        candidates: anchors or proposals.
        candidates_valid: invalid ones are ignored and are nobody's best.
        boxes: ground truth, crowd regions included.
        valid: real objects.
        crowd: ignored regions; no slot is both valid and crowd. None is none.
        positive_iou: lowest overlap of a positive, in [0, 1]; not below the negative range.
        negative_iou: negatives overlap less than this, or lie in [low, high).
        min_positive_iou: lowest best overlap for a low-quality match.
        match_low_quality: give each ground truth its best candidates.
        match_all_ties: all candidates that tie for best, not only the first.
        reassign_low_quality: such a candidate learns the ground truth whose
            best it is (mmdetection), else the one that it overlaps most itself
            (simple-faster-rcnn, torchvision, detectron2).
        ignore_iof_threshold: candidates that lie by more than this fraction in
            a crowd region are ignored; 0 or less turns it off.
        ignore_by_candidate: the fraction is of the candidate's area, else of
            the crowd region's.

    Raises:
        ValueError: if a threshold lies outside [0, 1], the negative range is
            not (low, high) or reaches above `positive_iou`, or `ignore_iof_threshold` is above 1.

    Reference: mmdetection 2.11, MaxIoUAssigner; Ren et al., Faster R-CNN,
        sec. 3.1.2, arXiv:1506.01497.
    """
    low, high = _negative_range(negative_iou)
    check_fractions(positive_iou=positive_iou, min_positive_iou=min_positive_iou)
    if positive_iou < high:
        raise ValueError(
            f"positive_iou must not be below negative_iou, got {positive_iou} and {negative_iou}"
        )
    if not ignore_iof_threshold <= 1:
        raise ValueError(f"ignore_iof_threshold must be at most 1, got {ignore_iof_threshold}")
    candidates, boxes = jax.lax.stop_gradient((candidates, boxes))
    if boxes.shape[0] == 0:  # Reductions over the ground truth need a slot.
        boxes, valid, crowd = jnp.zeros((1, 4)), jnp.zeros(1, bool), None
    usable = candidates_valid
    if crowd is not None and ignore_iof_threshold > 0:
        usable &= ~_in_crowd(candidates, boxes, crowd, ignore_iof_threshold, ignore_by_candidate)
    best, index, owner = _match(
        candidates,
        usable,
        boxes,
        valid,
        min_positive_iou=min_positive_iou,
        match_all_ties=match_all_ties,
    )
    labels = jnp.full(best.shape, IGNORE, jnp.int32)
    labels = jnp.where((best >= low) & (best < high), NEGATIVE, labels)
    labels = jnp.where(best >= positive_iou, POSITIVE, labels)
    if match_low_quality:
        labels = jnp.where(owner >= 0, POSITIVE, labels)
        index = jnp.where((owner >= 0) & reassign_low_quality, owner, index)

    # With nothing to learn from, crowd regions do not ignore either (as the reference has it).
    no_objects = ~jnp.any(valid)
    labels = jnp.where(no_objects & candidates_valid, NEGATIVE, labels)
    best = jnp.where(no_objects & candidates_valid, 0.0, best)
    return Assignment(labels, jnp.where(labels == POSITIVE, index, 0).astype(jnp.int32), best)


@check_shapes
def append_ground_truth(
    candidates: Real[Array, "N 4"],
    assignment: Assignment,
    boxes: Real[Array, "G 4"],
    valid: Bool[Array, " G"],
) -> tuple[Float[Array, "M 4"], Assignment]:
    """Makes the objects of an image candidates of their own (M = N + G), each its own positive.

    A box head then has something to learn before proposals are any good. The
    objects come last, where the reference puts them first: the draw of
    `sample_labels` counts from the front, so the number of objects does not
    change what is drawn of the candidates' random order. Slots that are not
    `valid`, crowd regions among them, become IGNOREd boxes of zeros.

    >>> assignment = Assignment(jnp.array([0]), jnp.array([0]), jnp.array([0.2]))
    >>> boxes, valid = jnp.array([[0, 0, 2, 2], [7, 7, 7, 7]]), jnp.array([True, False])
    >>> append_ground_truth(jnp.array([[5, 5, 6, 6]]), assignment, boxes, valid)[1].labels
    Array([ 0,  1, -1], dtype=int32)

    Args:
        candidates: proposals.
        assignment: of the candidates.
        boxes: ground truth.
        valid: real objects.

    Returns:
        Candidates, then ground truth; and their assignment, with overlap 1 for
        objects and -1 for the other slots.

    Raises:
        ValueError: if the assignment is not of N candidates.

    Reference: mmdetection 2.11, RandomSampler's add_gt_as_proposals.
    """
    if assignment.labels.shape != candidates.shape[:1]:
        raise ValueError(
            f"{candidates.shape[0]} candidates, but labels of the shape {assignment.labels.shape}"
        )
    slots = jnp.arange(boxes.shape[0], dtype=jnp.int32)
    own = Assignment(
        jnp.where(valid, POSITIVE, IGNORE).astype(jnp.int32),
        jnp.where(valid, slots, 0),
        jnp.where(valid, 1.0, -1.0),
    )
    objects = jnp.where(valid[:, None], boxes.astype(jnp.float32), 0.0)
    joined = [jnp.concatenate(pair) for pair in zip(assignment, own, strict=True)]
    return jnp.concatenate([candidates.astype(jnp.float32), objects]), Assignment(*joined)


def _in_crowd(candidates, boxes, crowd, threshold, by_candidate):
    if by_candidate:
        fraction = box_ops.pairwise_iof(candidates, boxes)
    else:
        fraction = box_ops.pairwise_iof(boxes, candidates).T
    return jnp.any(crowd & (fraction > threshold), axis=1)


def _match(candidates, usable, boxes, valid, **settings):
    """Each candidate's best overlap, whose it is, and its `_low_quality_owner`: (N,) each."""

    def match(found, block):
        best, index, owner = found
        slots, boxes, valid = block
        # -1, not 0, for padding: 0 is an overlap that negatives have and that ties can equal.
        overlaps = jnp.where(
            valid[:, None] & usable[None], box_ops.pairwise_iou(boxes, candidates), -1.0
        )
        highest = jnp.max(overlaps, axis=0)
        better = highest > best  # Of equals the first.
        index = jnp.where(better, slots[jnp.argmax(overlaps, axis=0)], index)
        owner = jnp.maximum(owner, _low_quality_owner(overlaps, slots, **settings))
        return (jnp.maximum(best, highest), index, owner), None

    count = usable.shape[0]
    nothing = jnp.full(count, -1.0), jnp.zeros(count, jnp.int32), jnp.full(count, -1, jnp.int32)
    truth = jnp.arange(boxes.shape[0], dtype=jnp.int32), boxes, valid
    size = max(8, _MAX_OVERLAPS // max(count, 1) // 8 * 8)
    if boxes.shape[0] <= size:
        return match(nothing, truth)[0]
    blocks = jax.tree.map(partial(_in_blocks, size=size), truth)
    return jax.lax.scan(match, nothing, blocks)[0]


def _in_blocks(values, *, size):
    """(G, ...) -> (blocks, size, ...), zeros and False behind the last."""
    padding = [(0, -values.shape[0] % size)] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values, padding).reshape(-1, size, *values.shape[1:])


def _low_quality_owner(overlaps, slots, *, min_positive_iou, match_all_ties):
    """The last of the slots whose best overlap a candidate has, or -1: (N,)."""
    best = jnp.max(overlaps, axis=1)
    eligible = (best > 0) & (best >= min_positive_iou)
    if match_all_ties:
        takes = overlaps == best[:, None]
    else:
        takes = jnp.arange(overlaps.shape[1]) == jnp.argmax(overlaps, axis=1)[:, None]
    return jnp.max(jnp.where(takes & eligible[:, None], slots[:, None], -1), axis=0)


def _negative_range(negative_iou):
    """(low, high): negatives have an overlap of at least `low` and below `high`."""
    pair = isinstance(negative_iou, (tuple, list))
    bounds = tuple(negative_iou) if pair else (0.0, negative_iou)
    if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError(f"negative_iou must lie in [0, 1], as (low, high) too, got {negative_iou}")
    return bounds
