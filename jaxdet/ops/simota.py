"""SimOTA: each object takes the anchors that cost it least, as many as fit it well.

Fixed sizes for any number of objects; nothing leaves the device. Memory is a
few float32 arrays of (G, N) an image: 4 MB each for 120 objects and 8400 anchors.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from jaxdet.ops import boxes as box_ops
from jaxdet.ops.anchors import GridPoints
from jaxdet.ops.contracts import check_at_least, check_shapes

# The reference's cross entropy takes no logarithm as lower: a class never costs more than this.
_MAX_NEGATIVE_LOG = 100.0

# Keeps the logarithm of an IoU of 0 finite, as the reference does.
_EPSILON = 1e-8


class SimotaCosts(NamedTuple):
    """What each object would pay for each anchor.

    Attributes:
        costs: infinite for anchors that are no candidates and in padded slots.
        overlaps: IoU with the predicted box; 0 where the cost is infinite.
        counts: how many anchors each object takes, the dynamic k; 0 in padded
            slots, and everywhere if no anchor is a candidate.
    """

    costs: Float[Array, "G N"]
    overlaps: Float[Array, "G N"]
    counts: Int[Array, " G"]


class SimotaAssignment(NamedTuple):
    """Which object each anchor learns.

    Attributes:
        positive: anchors that learn an object; the others are background.
        index: the slot of that object; 0 elsewhere.
        overlaps: the IoU of the predicted box with it, the weight of its class
            target; 0 elsewhere.
    """

    positive: Bool[Array, " N"]
    index: Int[Array, " N"]
    overlaps: Float[Array, " N"]


@check_shapes
def simota_costs(
    points: GridPoints,
    predictions: Real[Array, "N 4"],
    class_logits: Float[Array, "N K"],
    objectness: Float[Array, " N"],
    boxes: Real[Array, "G 4"],
    labels: Int[Array, " G"],
    valid: Bool[Array, " G"],
    *,
    centre_radius: float = 2.5,
    inside_boxes: bool = True,
    penalty: float = 1e5,
    iou_weight: float = 3.0,
    num_candidates: int = 10,
) -> SimotaCosts:
    """The costs on which `assign_simota` decides, and how many anchors each object takes.

    An anchor is a candidate if its centre lies near the centre of any object,
    or inside any object's box; borders do not count. A cost is the binary cross
    entropy of sqrt(class x objectness) with the object's class, summed over the
    classes, plus `iou_weight` times -log(IoU + 1e-8), plus `penalty` unless the
    anchor's centre lies near the object's and in its box. Within a penalty of
    1e5 float32 rounds to 1/128, within 1e6 to 1/16, as in the reference.

    An object takes as many anchors as the sum of its `num_candidates` best IoUs
    with candidates, rounded down, but at least one.

    The logarithms come from the logits and stay exact where the reference's
    probabilities round to 0 or 1. No gradient flows back.

    >>> points = GridPoints(jnp.array([[4, 4], [12, 4]]), jnp.array([8, 8]))
    >>> boxes = jnp.array([[0, 0, 8, 8], [0, 0, 16, 8]])
    >>> simota_costs(points, boxes, jnp.zeros((2, 1)), jnp.zeros(2),
    ...              boxes[:1], jnp.array([0]), jnp.array([True])).overlaps
    Array([[1. , 0.5]], dtype=float32)

    Args: as those of `assign_simota`.

    Raises:
        ValueError: as `assign_simota`.
    """
    check_at_least(0, centre_radius=centre_radius, penalty=penalty, iou_weight=iou_weight)
    check_at_least(1, num_candidates=num_candidates)
    num_anchors = predictions.shape[0]
    if points.centres.shape != (num_anchors, 2) or points.strides.shape != (num_anchors,):
        raise ValueError(
            f"{num_anchors} predictions, but points with centres of the shape "
            f"{points.centres.shape} and strides of {points.strides.shape}"
        )
    points, predictions, class_logits, objectness, boxes = jax.lax.stop_gradient(
        (points, predictions, class_logits, objectness, boxes)
    )
    near = _near_centres(boxes, points, centre_radius)
    inside = _in_boxes(boxes, points)
    eligible, preferred = (near | inside, near & inside) if inside_boxes else (near, near)
    candidates = jnp.any(eligible & valid[:, None], axis=0)
    usable = candidates & valid[:, None]

    overlaps = jnp.where(usable, box_ops.pairwise_iou(boxes, predictions), 0.0)
    costs = _class_costs(class_logits, objectness, labels)
    costs = costs - iou_weight * jnp.log(overlaps + _EPSILON)
    costs = jnp.where(usable, costs + jnp.where(preferred, 0.0, penalty), jnp.inf)

    best, _ = _largest(overlaps, min(num_candidates, num_anchors))
    counts = jnp.maximum(jnp.sum(best, axis=1).astype(jnp.int32), 1)
    return SimotaCosts(costs, overlaps, jnp.where(valid & jnp.any(candidates), counts, 0))


@check_shapes
def assign_simota(
    points: GridPoints,
    predictions: Real[Array, "N 4"],
    class_logits: Float[Array, "N K"],
    objectness: Float[Array, " N"],
    boxes: Real[Array, "G 4"],
    labels: Int[Array, " G"],
    valid: Bool[Array, " G"],
    *,
    centre_radius: float = 2.5,
    inside_boxes: bool = True,
    penalty: float = 1e5,
    iou_weight: float = 3.0,
    num_candidates: int = 10,
) -> SimotaAssignment:
    """Assigns anchors to the objects that they already predict best, by SimOTA.

    Each object takes its cheapest candidates (`simota_costs` says at what cost
    and how many), equal costs by index. An anchor that several objects take
    goes to the cheapest of all objects, takers or not; of equals to the first.
    So an object may end with fewer anchors than it takes, or with none.

    The defaults are the rule of YOLOX 0.1 to 0.3. Its later
    code is `centre_radius=1.5, inside_boxes=False, penalty=1e6`.

    An object with no candidate of its own may take those of others. Where no
    anchor is a candidate, nothing is matched (the reference fails), as in an
    image without objects. No gradient flows back from an assignment.

    >>> points = GridPoints(jnp.array([[4, 4], [12, 4]]), jnp.array([8, 8]))
    >>> boxes = jnp.array([[0, 0, 8, 8], [0, 0, 16, 8]])
    >>> assign_simota(points, boxes, jnp.zeros((2, 1)), jnp.zeros(2),
    ...               boxes[:1], jnp.array([0]), jnp.array([True])).positive
    Array([ True, False], dtype=bool)

    Args:
        points: centres and strides of the anchors, in pixels, as
            `anchors.grid_points` gives them.
        predictions: the decoded box of each anchor; finite.
        class_logits: of every class, without background; finite.
        objectness: logits; finite.
        boxes: ground truth.
        labels: its classes in 0..K-1; others are clipped into that.
        valid: real objects.
        centre_radius: how near to an object's centre an anchor's lies at most
            in x and in y, in the anchor's strides; at least 0.
        inside_boxes: anchors in an object's box are candidates as well, and
            those in the box and near the centre are preferred; without it, the
            box plays no part and those near the centre are both.
        penalty: cost of an anchor that is not preferred; at least 0.
        iou_weight: of -log(IoU) in the cost; at least 0.
        num_candidates: the largest number of anchors for an object; at least 1.

    Raises:
        ValueError: if a setting is out of range or there is not one point for
            each prediction.

    Reference: Ge et al., YOLOX, sec. 2.1, arXiv:2107.08430; its head's
        get_assignments.
    """
    if boxes.shape[0] == 0:  # The cheapest object of all needs a slot.
        boxes, labels, valid = jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32), jnp.zeros(1, bool)
    costs, overlaps, counts = simota_costs(
        points, predictions, class_logits, objectness, boxes, labels, valid,
        centre_radius=centre_radius, inside_boxes=inside_boxes, penalty=penalty,
        iou_weight=iou_weight, num_candidates=num_candidates,
    )  # fmt: skip
    num_objects, num_anchors = costs.shape
    # No object takes more than `num_candidates`: a short top-k does for sorting all anchors.
    falling, anchors = _largest(-costs, min(num_candidates, num_anchors))
    takes = (jnp.arange(falling.shape[1]) < counts[:, None]) & (falling > -jnp.inf)
    takers = jnp.zeros(num_anchors, jnp.int32).at[anchors].add(takes.astype(jnp.int32))
    slots = jnp.arange(num_objects, dtype=jnp.int32)[:, None]
    only_taker = jnp.zeros(num_anchors, jnp.int32).at[anchors].max(jnp.where(takes, slots, 0))
    index = jnp.where(takers > 1, jnp.argmin(costs, axis=0).astype(jnp.int32), only_taker)
    matched = jnp.take_along_axis(overlaps, index[None], axis=0)[0]
    return SimotaAssignment(takers > 0, index, jnp.where(takers > 0, matched, 0.0))


def _largest(rows, count):
    """As `jax.lax.top_k`, for which a TPU sorts whole rows: there one after the other is found."""
    return jax.lax.platform_dependent(
        rows,
        tpu=partial(_largest_in_turn, count=count),
        default=partial(jax.lax.top_k, k=count),
    )


def _largest_in_turn(rows, count):
    # What is taken becomes less than all that is left, and that may be -inf.
    left = jnp.maximum(rows, jnp.finfo(rows.dtype).min)
    places = []
    for _ in range(count):
        place = jnp.argmax(left, axis=1, keepdims=True).astype(jnp.int32)
        left = jnp.where(jnp.arange(rows.shape[1]) == place, -jnp.inf, left)
        places.append(place)
    places = jnp.concatenate(places, axis=1)
    return [jnp.take_along_axis(rows, places, axis=1), places]


def _near_centres(boxes, points, radius):
    """Whether an anchor's centre lies within `radius` strides of an object's: (G, N)."""
    centres = box_ops.xyxy_to_cxcywh(boxes)[:, None, :2]
    reach = radius * points.strides.astype(jnp.float32)[:, None]
    anchors = points.centres.astype(jnp.float32)
    return jnp.all((anchors > centres - reach) & (anchors < centres + reach), axis=-1)


def _in_boxes(boxes, points):
    """Whether an anchor's centre lies in an object's box: (G, N)."""
    boxes, anchors = boxes.astype(jnp.float32)[:, None], points.centres.astype(jnp.float32)
    return jnp.all((anchors > boxes[..., :2]) & (anchors < boxes[..., 2:]), axis=-1)


def _class_costs(class_logits, objectness, labels):
    """Cross entropy of sqrt(class x objectness) with each object's class: (G, N).

    What all classes but one cost is the sum of all less that one: no (G, N, K).
    """
    logits, objectness = class_logits.astype(jnp.float32), objectness.astype(jnp.float32)
    present = -(jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(objectness)[:, None]) / 2
    absent = jnp.minimum(-jax.nn.log1mexp(present), _MAX_NEGATIVE_LOG)
    exchange = jnp.minimum(present, _MAX_NEGATIVE_LOG) - absent
    own = jnp.take(exchange.T, labels, axis=0, mode="clip")
    return own + jnp.sum(absent, axis=1)
