"""From RPN outputs to the proposals of one image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jaxdet.ops import box_coder
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.contracts import check_at_least, check_shapes
from jaxdet.ops.suppression import nms_sorted
from jaxdet.types import Proposals


@check_shapes
def generate_proposals(
    scores: Float[Array, " N"],
    deltas: Float[Array, "N 4"],
    anchors: Shaped[Array | np.ndarray, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Real[Array, "2"],
    *,
    level_sizes: Sequence[int],
    pre_nms: int,
    iou_threshold: float,
    num_proposals: int,
    min_size: Real[Array, ""] | float = 0.0,
    filter_first: bool = False,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_ratio: float = box_coder.MAX_RATIO,
    limit_shrinking: bool = True,
) -> Proposals:
    """Decodes the best anchors of each level, suppresses per level, keeps the best of all.

    Equal scores come in the order of the anchors.

    Args:
        scores: objectness of each anchor, such as the sigmoid of its logit or
            its softmax foreground; higher is better.
        deltas: box deltas of each anchor.
        anchors: of all levels, concatenated.
        anchors_valid: anchors that may become proposals; the rest may hold anything.
        size: (height, width) of the image, which boxes are clipped to.
        level_sizes: anchors of each level; they sum to N.
        pre_nms: best anchors of each level that go into suppression.
        iou_threshold: of the suppression, in [0, 1].
        num_proposals: P; slots left over are zeros and invalid.
        min_size: boxes with a shorter side are dropped, in pixels; may be
            traced. (mmdetection 2.11 filters by mistake on a sum of indices.)
        filter_first: drop them before the best `pre_nms` are taken, as
            simple-faster-rcnn does, not after, as mmdetection does.
        means: of the deltas.
        stds: of the deltas.
        max_ratio: see `box_coder.decode`, as `limit_shrinking`.
        limit_shrinking: likewise.

    Raises:
        ValueError: if `level_sizes` do not sum to N, a count is below 1, or
            another setting is out of range.

    Reference: Ren et al., Faster R-CNN, sec. 3.1.3, arXiv:1506.01497;
        mmdetection 2.11, RPNHead.get_bboxes; simple-faster-rcnn, ProposalCreator.

    >>> anchors = jnp.array([[0, 0, 8, 8], [0, 0, 8, 7], [4, 4, 16, 16]])
    >>> found = generate_proposals(
    ...     jnp.array([0.8, 0.9, 0.7]), jnp.zeros((3, 4)), anchors, jnp.ones(3, bool),
    ...     jnp.array([12, 12]), level_sizes=(3,), pre_nms=3, iou_threshold=0.7, num_proposals=2)
    >>> found.boxes
    Array([[ 0.,  0.,  8.,  7.],
           [ 4.,  4., 12., 12.]], dtype=float32)
    """
    check_at_least(1, pre_nms=pre_nms, num_proposals=num_proposals)
    # Deltas of invalid anchors may be NaN: zeros keep that out of the others' gradient.
    deltas = jnp.where(anchors_valid[:, None], deltas, 0)
    anchors = jnp.asarray(anchors)

    def decode(*index):
        return box_coder.decode(
            anchors[index],
            deltas[index],
            means=means,
            stds=stds,
            max_ratio=max_ratio,
            limit_shrinking=limit_shrinking,
            size=size,
        )

    usable = anchors_valid
    if filter_first:
        usable &= box_ops.has_min_size(decode(...), min_size)
    ranked = jnp.where(usable, scores.astype(jnp.float32), -jnp.inf)
    best, index = best_of_levels(ranked, level_sizes, pre_nms)
    boxes = decode(index)
    valid = (best > -jnp.inf) & box_ops.has_min_size(boxes, min_size)
    suppress = jax.vmap(lambda b, v: nms_sorted(b, v, iou_threshold=iou_threshold))
    keep = suppress(boxes, valid)

    ranked = jnp.where(keep, best, -jnp.inf).ravel()
    padding = max(num_proposals - ranked.shape[0], 0)
    ranked = jnp.pad(ranked, (0, padding), constant_values=-jnp.inf)
    best, chosen = jax.lax.top_k(ranked, num_proposals)
    valid = best > -jnp.inf
    boxes = jnp.pad(boxes.reshape(-1, 4), [(0, padding), (0, 0)])[chosen]
    return Proposals(jnp.where(valid[:, None], boxes, 0), jnp.where(valid, best, 0), valid)


@check_shapes
def best_of_levels(
    scores: Float[Array, " N"], level_sizes: Sequence[int], count: int
) -> tuple[Float[Array, "L k"], Int[Array, "L k"]]:
    """The best scores of each level and their places, best first, equal ones in order.

    Args:
        scores: of the anchors of all levels, concatenated.
        level_sizes: anchors of each level; they sum to N.
        count: how many of each level are wanted; k is this, or the size of the
            largest level where that is less. Short levels end in -inf.

    Raises:
        ValueError: if `level_sizes` do not sum to N, or `count` is below 1.

    >>> best_of_levels(jnp.array([0.1, 0.3, 0.2]), (2, 1), 2)[0]
    Array([[ 0.3,  0.1],
           [ 0.2, -inf]], dtype=float32)
    """
    if sum(level_sizes) != scores.shape[0]:
        raise ValueError(f"levels of {tuple(level_sizes)} anchors for {scores.shape[0]} scores")
    check_at_least(1, count=count)
    count = min(count, max(level_sizes))
    starts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
    best, index = [], []
    for start, length in zip(starts, level_sizes, strict=True):
        top, place = jax.lax.top_k(scores[start : start + length], min(count, length))
        padding = (0, count - top.shape[0])
        best.append(jnp.pad(top, padding, constant_values=-jnp.inf))
        index.append(jnp.pad(place + start, padding))
    return jnp.stack(best), jnp.stack(index)
