"""From RPN outputs to the proposals of one image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real, Shaped

from jaxdet.ops import box_coder, nms
from jaxdet.types import Proposals


def generate_proposals(
    logits: Float[Array, " N"],
    deltas: Float[Array, "N 4"],
    anchors: Shaped[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Real[Array, "2"],
    *,
    level_sizes: Sequence[int],
    pre_nms: int,
    iou_threshold: float,
    num_proposals: int,
    min_size: float = 0.0,
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> Proposals:
    """Decodes the best anchors of each level, suppresses per level, keeps the best of all.

    Args:
        logits: objectness of each anchor; proposals score its sigmoid.
        deltas: box deltas of each anchor.
        anchors: of all levels, concatenated.
        anchors_valid: anchors that may become proposals.
        size: (height, width) of the image, which boxes are clipped to.
        level_sizes: anchors of each level; they sum to N.
        pre_nms: best anchors of each level that are decoded.
        iou_threshold: of the suppression, in [0, 1].
        num_proposals: P; slots left over are zeros and invalid.
        min_size: boxes with a shorter side are dropped, in pixels, if > 0.
            (mmdetection 2.11 filters by mistake on a sum of indices.)
        stds: of the deltas.

    Raises:
        ValueError: if `level_sizes` do not sum to N.

    Reference: Ren et al., Faster R-CNN, sec. 3.1.3, arXiv:1506.01497;
        mmdetection 2.11, RPNHead.get_bboxes.
    """
    if sum(level_sizes) != logits.shape[0]:
        raise ValueError(f"levels of {tuple(level_sizes)} anchors for {logits.shape[0]} logits")
    scores = jnp.where(anchors_valid, jax.nn.sigmoid(logits.astype(jnp.float32)), -1.0)
    best, index = _best_of_levels(scores, level_sizes, pre_nms)
    boxes = box_coder.decode(anchors[index], deltas[index], stds=stds, size=size)
    valid = best >= 0
    if min_size > 0:
        valid &= jnp.all(boxes[..., 2:] - boxes[..., :2] >= min_size, axis=-1)
    suppress = jax.vmap(lambda b, v: nms.nms_sorted(b, v, iou_threshold=iou_threshold))
    keep = suppress(boxes, valid)

    ranked = jnp.where(keep, best, -1.0).ravel()
    padding = max(num_proposals - ranked.shape[0], 0)
    scores, chosen = jax.lax.top_k(jnp.pad(ranked, (0, padding), constant_values=-1), num_proposals)
    valid = scores >= 0
    boxes = jnp.pad(boxes.reshape(-1, 4), [(0, padding), (0, 0)])[chosen]
    return Proposals(jnp.where(valid[:, None], boxes, 0), jnp.where(valid, scores, 0), valid)


def _best_of_levels(
    scores: Float[Array, " N"], level_sizes: Sequence[int], count: int
) -> tuple[Float[Array, "L k"], Int[Array, "L k"]]:
    """The `count` best scores of each level and their places; short levels end in -1."""
    count = min(count, max(level_sizes))
    starts = [sum(level_sizes[:level]) for level in range(len(level_sizes))]
    best, index = [], []
    for start, length in zip(starts, level_sizes, strict=True):
        top, place = jax.lax.top_k(scores[start : start + length], min(count, length))
        padding = (0, count - top.shape[0])
        best.append(jnp.pad(top, padding, constant_values=-1))
        index.append(jnp.pad(place + start, padding))
    return jnp.stack(best), jnp.stack(index)
