"""Non-maximum suppression, exact at every threshold, in fixed sizes.

Overlaps are float32 whatever comes in, and groups are compared, never added to
coordinates: large images with many classes are as exact as small ones.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.contracts import check_at_least, check_fractions, check_shapes
from jaxdet.types import Detections

SOFT_NMS_METHODS = ("linear", "gaussian")


class SoftNms(NamedTuple):
    """What `soft_nms` leaves of each box, in the order given.

    Attributes:
        scores: decayed scores; 0 where dropped.
        keep: boxes that stay.
    """

    scores: Float[Array, " N"]
    keep: Bool[Array, " N"]


@check_shapes
def nms(
    boxes: Real[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
    *,
    iou_threshold: float,
) -> Bool[Array, " N"]:
    """Says which boxes greedy suppression keeps, in the order given.

    Boxes are visited by falling score, equal scores by index; each kept box
    suppresses the later ones of its group that overlap it by more than the
    threshold. Invalid boxes neither suppress nor stay.

    Args:
        boxes: candidate boxes.
        scores: higher is better; NaN only where invalid.
        valid: real candidates.
        groups: only boxes of one group suppress each other; None is one group.
        iou_threshold: in [0, 1], static.

    Raises:
        ValueError: if the threshold lies outside [0, 1].

    Reference: torchvision.ops.nms (mmcv's CPU op also suppresses at equality).

    >>> boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 15, 15]])
    >>> nms(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.ones(3, bool), iou_threshold=0.5)
    Array([False,  True,  True], dtype=bool)
    """
    order = jnp.argsort(jnp.where(valid, scores.astype(jnp.float32), -jnp.inf), descending=True)
    sorted_groups = None if groups is None else groups[order]
    keep = nms_sorted(boxes[order], valid[order], sorted_groups, iou_threshold=iou_threshold)
    return jnp.zeros_like(valid).at[order].set(keep)


@check_shapes
def nms_sorted(
    boxes: Real[Array, "N 4"],
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
    *,
    iou_threshold: float,
) -> Bool[Array, " N"]:
    """`nms` of boxes that are sorted already, best first.

    On a CPU kept boxes are visited in turn. Elsewhere, where a loop over boxes
    is slow, pairs of boxes are swept over, usually two to ten times.

    Args:
        boxes: candidate boxes, best first.
        valid: real candidates; they need not come first.
        groups: as for `nms`.
        iou_threshold: in [0, 1], static.

    Raises:
        ValueError: if the threshold lies outside [0, 1].

    >>> boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 15, 15]])
    >>> nms_sorted(boxes, jnp.ones(3, bool), iou_threshold=0.5)
    Array([ True, False,  True], dtype=bool)
    """
    check_fractions(iou_threshold=iou_threshold)
    # Arrays of NumPy can't be indexed by what a loop counts.
    boxes, valid, groups = jax.tree.map(jnp.asarray, (boxes, valid, groups))
    visit, sweep = partial(_visit_kept, iou_threshold), partial(_sweep_pairs, iou_threshold)
    return jax.lax.platform_dependent(boxes, valid, groups, cpu=visit, default=sweep)


@check_shapes
def nms_per_class(
    boxes: Real[Array, "P #K 4"],
    scores: Float[Array, "P K"],
    valid: Bool[Array, " P"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int,
    class_agnostic: bool = False,
    min_size: float = 0.0,
) -> Detections:
    """The best detections of one image after suppression within each class.

    Only the `max_candidates` best pairs of box and class are looked at. The
    result is exact if `max_detections` of them survive or if no more pairs
    than that pass the score threshold: lower pairs cannot suppress higher ones.
    Equal scores come in the order of rows, then classes.

    Args:
        boxes: one box a class, or, as (P, 1, 4), one for all classes.
        scores: of each class, in [0, 1].
        valid: real rows.
        score_threshold: pairs must score more than this; in [0, 1], static.
        iou_threshold: in [0, 1], static.
        max_detections: D, static; slots left over are zeros and invalid.
        max_candidates: static; at least D unless there are fewer pairs.
        class_agnostic: pairs of all classes suppress each other.
        min_size: boxes with a shorter side are dropped, as torchvision does.

    Raises:
        ValueError: if `max_candidates` is below `max_detections`, that is below
            1, `min_size` is negative, or a threshold lies outside [0, 1].

    Reference: mmdetection 2.11, multiclass_nms, which looks at every pair.

    >>> found = nms_per_class(
    ...     jnp.array([[[0, 0, 9, 9]], [[0, 0, 9, 8]]]), jnp.array([[0.9, 0.6], [0.8, 0.7]]),
    ...     jnp.array([True, True]),
    ...     score_threshold=0.05, iou_threshold=0.5, max_detections=3, max_candidates=4)
    >>> found.labels, found.valid
    (Array([0, 1, 0], dtype=int32), Array([ True,  True, False], dtype=bool))
    """
    _check_settings(score_threshold, iou_threshold, max_detections, max_candidates, min_size)
    num_rows, num_classes = scores.shape
    passing = valid[:, None] & (scores > score_threshold)
    if min_size > 0:
        passing &= box_ops.has_min_size(boxes, min_size)
    ranked = jnp.where(passing, scores.astype(jnp.float32), -jnp.inf).ravel()
    best, pair = jax.lax.top_k(ranked, min(max_candidates, num_rows * num_classes))
    labels = (pair % num_classes).astype(jnp.int32)
    box_class = labels if boxes.shape[1] == num_classes else jnp.zeros_like(labels)
    chosen = boxes.astype(jnp.float32)[pair // num_classes, box_class]
    candidates = Detections(chosen, best, labels, best > -jnp.inf)
    return _suppress(candidates, iou_threshold, class_agnostic, max_detections)


@check_shapes
def nms_best_class(
    boxes: Real[Array, "P 4"],
    scores: Float[Array, "P K"],
    valid: Bool[Array, " P"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int,
    class_agnostic: bool = False,
    min_size: float = 0.0,
) -> Detections:
    """The best detections of one image where each box has one class, its best.

    Otherwise as `nms_per_class`: only the `max_candidates` best boxes are looked
    at, and equal scores come by index. Of equal classes the first counts.

    Args:
        boxes: one for all classes.
        scores: of each class, in [0, 1]; for YOLOX class times objectness.
        valid: real rows.
        score_threshold: boxes must score at least this; in [0, 1], static.
        iou_threshold: in [0, 1], static.
        max_detections: D, static; slots left over are zeros and invalid.
        max_candidates: static; at least D unless there are fewer boxes.
        class_agnostic: boxes of all classes suppress each other.
        min_size: boxes with a shorter side are dropped.

    Raises:
        ValueError: as `nms_per_class`.

    Reference: YOLOX, postprocess, which looks at every box.

    >>> found = nms_best_class(
    ...     jnp.array([[0, 0, 9, 9], [0, 0, 9, 8]]), jnp.array([[0.9, 0.6], [0.8, 0.7]]),
    ...     jnp.array([True, True]),
    ...     score_threshold=0.05, iou_threshold=0.5, max_detections=3, max_candidates=4)
    >>> found.labels, found.valid
    (Array([0, 0, 0], dtype=int32), Array([ True, False, False], dtype=bool))
    """
    _check_settings(score_threshold, iou_threshold, max_detections, max_candidates, min_size)
    scores, labels = jnp.max(scores, axis=1), jnp.argmax(scores, axis=1).astype(jnp.int32)
    passing = valid & (scores >= score_threshold)
    if min_size > 0:
        passing &= box_ops.has_min_size(boxes, min_size)
    ranked = jnp.where(passing, scores.astype(jnp.float32), -jnp.inf)
    best, chosen = jax.lax.top_k(ranked, min(max_candidates, len(boxes)))
    candidates = Detections(
        boxes.astype(jnp.float32)[chosen], best, labels[chosen], best > -jnp.inf
    )
    return _suppress(candidates, iou_threshold, class_agnostic, max_detections)


@check_shapes
def soft_nms(
    boxes: Real[Array, "N 4"],
    scores: Float[Array, " N"],
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
    *,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
) -> SoftNms:
    """Lowers the scores of boxes that overlap better ones, rather than dropping them.

    The best box left is picked, equal scores by index, and the others of its
    group that are still left decay: times 1 - IoU where the IoU is more than
    the threshold ("linear"), or times exp(-IoU^2 / sigma) ("gaussian"). What
    scores less than `min_score` is dropped. And so on until all are picked.

    N picks follow one another, each over N boxes: far slower than `nms` on an
    accelerator. Give it the candidates that are left after a top-k. No
    gradient flows through.

    mmcv's op also decays at IoU equal to the threshold, and keeps the best box
    of all even below `min_score`; here a box below it is dropped at the start.

    Args:
        boxes: candidate boxes.
        scores: in [0, 1]; anything where invalid.
        valid: real candidates.
        groups: only boxes of one group lower each other's scores.
        method: "linear" or "gaussian".
        iou_threshold: of "linear", in [0, 1].
        sigma: of "gaussian", positive.
        min_score: in [0, 1].

    Raises:
        ValueError: if the method is unknown or a setting is out of range.

    Reference: Bodla et al., Soft-NMS, sec. 3, arXiv:1704.04503; mmcv 1.3, soft_nms.

    >>> boxes = jnp.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    >>> soft_nms(boxes, jnp.array([0.8, 0.5, 0.6]), jnp.array([True, True, False])).scores
    Array([0.8 , 0.25, 0.  ], dtype=float32)
    """
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f"method must be one of {', '.join(SOFT_NMS_METHODS)}, got {method!r}")
    check_fractions(iou_threshold=iou_threshold, min_score=min_score)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    boxes, groups = jax.tree.map(jnp.asarray, (boxes, groups))  # As in `nms_sorted`.
    boxes, scores = jax.lax.stop_gradient((boxes, scores.astype(jnp.float32)))

    def pick(state):
        scores, left, picked = state
        best = jnp.argmax(jnp.where(left, scores, -jnp.inf))
        left, picked = left.at[best].set(False), picked.at[best].set(True)
        overlaps = box_ops.iou(boxes, boxes[best])
        if method == "linear":
            decay = jnp.where(overlaps > iou_threshold, 1 - overlaps, 1)
        else:
            decay = jnp.exp(-(overlaps**2) / sigma)
        affected = left if groups is None else left & (groups == groups[best])
        scores = jnp.where(affected, scores * decay, scores)
        return scores, left & (scores >= min_score), picked

    start = scores, valid & (scores >= min_score), jnp.zeros_like(valid)
    scores, _, keep = jax.lax.while_loop(lambda state: jnp.any(state[1]), pick, start)
    return SoftNms(jnp.where(keep, scores, 0), keep)


def _check_settings(score_threshold, iou_threshold, max_detections, max_candidates, min_size):
    check_fractions(score_threshold=score_threshold, iou_threshold=iou_threshold)
    check_at_least(1, max_detections=max_detections)
    check_at_least(0, min_size=min_size)
    if max_candidates < max_detections:
        raise ValueError(f"max_candidates {max_candidates} < max_detections {max_detections}")


def _visit_kept(iou_threshold, boxes, valid, groups):
    """Each kept box, best first, suppresses what it overlaps: as many rounds as boxes are kept."""
    if len(boxes) == 0:
        return valid  # Nothing can be indexed in the loop.
    corners = boxes.astype(jnp.float32).T  # Coordinates side by side, for vector units.
    index = jnp.arange(len(boxes))

    def visit(state):
        best, keep = state
        later = index > best
        suppressed = later & (box_ops.iou(corners.T, corners[:, best]) > iou_threshold)
        if groups is not None:
            suppressed &= groups == groups[best]
        keep &= ~suppressed
        return first(keep & later), keep

    def first(candidates):
        return jnp.min(index, where=candidates, initial=len(boxes))

    return jax.lax.while_loop(lambda s: s[0] < len(boxes), visit, (first(valid), valid))[1]


def _sweep_pairs(iou_threshold, boxes, valid, groups):
    """Repeats "kept unless a kept, better box overlaps it" until nothing changes.

    Greedy suppression is the one fixed point of that sentence, and each sweep
    settles at least one box more.
    """
    suppresses = box_ops.pairwise_iou(boxes, boxes) > iou_threshold
    if groups is not None:
        suppresses &= groups[:, None] == groups
    suppresses &= jnp.triu(jnp.ones_like(suppresses), 1)

    def sweep(state):
        keep, _ = state
        updated = valid & ~jnp.any(suppresses & keep[:, None], axis=0)
        return updated, jnp.any(updated != keep)

    keep, _ = jax.lax.while_loop(lambda state: state[1], sweep, (valid, jnp.array(True)))
    return keep


def _suppress(candidates, iou_threshold, class_agnostic, count):
    """The first `count` candidates, best first, that suppression keeps; the rest is zeros."""
    boxes, scores, labels, valid = candidates
    groups = None if class_agnostic else labels
    keep = nms_sorted(boxes, valid, groups, iou_threshold=iou_threshold)
    padding = max(count - keep.shape[0], 0)
    keep = jnp.pad(keep, (0, padding))
    # Kept rows first, in their order: they are sorted by score already.
    order = jnp.argsort(~keep, stable=True)[:count]
    valid = keep[order]

    def take(values):
        rows = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))[order]
        return jnp.where(valid.reshape(-1, *[1] * (values.ndim - 1)), rows, 0)

    return Detections(take(boxes), take(scores), take(labels), valid)
