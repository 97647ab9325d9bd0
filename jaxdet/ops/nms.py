"""Greedy non-maximum suppression, exact at every threshold, in fixed sizes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.ops import boxes as box_ops
from jaxdet.types import Detections


def nms(
    boxes: Float[Array, "N 4"],
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
    """
    order = jnp.argsort(jnp.where(valid, scores.astype(jnp.float32), -jnp.inf), descending=True)
    sorted_groups = None if groups is None else groups[order]
    keep = nms_sorted(boxes[order], valid[order], sorted_groups, iou_threshold=iou_threshold)
    return jnp.zeros_like(valid).at[order].set(keep)


def nms_sorted(
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    groups: Int[Array, " N"] | None = None,
    *,
    iou_threshold: float,
) -> Bool[Array, " N"]:
    """`nms` of boxes that are sorted already, best first.

    Greedy suppression is the one fixed point of "kept unless a kept, better
    box overlaps it": repeating that sentence settles box after box, usually
    in four to six sweeps, without a loop over boxes.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
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


def nms_per_class(
    boxes: Float[Array, "P #K 4"],
    scores: Float[Array, "P K"],
    valid: Bool[Array, " P"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int,
) -> Detections:
    """The best detections of one image after suppression within each class.

    Only the `max_candidates` best pairs of box and class are looked at. The
    result is exact if `max_detections` of them survive or if no more pairs
    than that pass the score threshold: lower pairs cannot suppress higher ones.

    Args:
        boxes: one box a class, or one for all classes.
        scores: of each class, in [0, 1].
        valid: real rows.
        score_threshold: pairs must score more than this.
        iou_threshold: in [0, 1], static.
        max_detections: D, static.
        max_candidates: static; at least D unless there are fewer pairs.

    Raises:
        ValueError: if `max_candidates` is below `max_detections`, or the
            threshold lies outside [0, 1].
    """
    if max_candidates < max_detections:
        raise ValueError(f"max_candidates {max_candidates} < max_detections {max_detections}")
    num_rows, num_classes = scores.shape
    passing = valid[:, None] & (scores > score_threshold)
    ranked = jnp.where(passing, scores.astype(jnp.float32), -1.0).ravel()
    best, pair = jax.lax.top_k(ranked, min(max_candidates, num_rows * num_classes))
    labels = (pair % num_classes).astype(jnp.int32)
    box_class = labels if boxes.shape[1] == num_classes else jnp.zeros_like(labels)
    chosen = boxes.astype(jnp.float32)[pair // num_classes, box_class]
    keep = nms_sorted(chosen, best >= 0, labels, iou_threshold=iou_threshold)
    return _first(keep, chosen, best, labels, count=max_detections)


def _first(keep, boxes, scores, labels, *, count):
    """The first `count` kept rows; the rest is zeros and invalid."""
    padding = max(count - keep.shape[0], 0)
    keep = jnp.pad(keep, (0, padding))
    # Kept rows first, in their order: they are sorted by score already.
    order = jnp.argsort(~keep, stable=True)[:count]
    valid = keep[order]

    def take(values):
        rows = jnp.pad(values, [(0, padding)] + [(0, 0)] * (values.ndim - 1))[order]
        return jnp.where(valid.reshape(-1, *[1] * (values.ndim - 1)), rows, 0)

    return Detections(take(boxes), take(scores), take(labels), valid)
