"""Losses of whole boxes, one number a box, and the box loss of an anchor in its two forms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from jaxdet.ops import box_coder, losses
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.contracts import check_shapes

IOU_FORMS = ("linear", "log", "square")
BOX_LOSS_KINDS = ("l1", "smooth_l1", "iou", "giou", "diou")

# Boxes apart have a finite loss under the log, as the reference has it (iou_loss, eps).
_MIN_IOU = 1e-6


@check_shapes
def iou_loss(
    predictions: Real[Array, "*#S 4"], targets: Real[Array, "*#S 4"], *, form: str = "linear"
) -> Float[Array, "*S"]:
    """One minus the overlap of boxes paired by broadcasting, or a function of it.

    Boxes that do not touch have the largest loss and no gradient. Two empty
    boxes do not overlap, equal or not.

    Args:
        predictions: boxes.
        targets: boxes to learn.
        form: "linear" is 1 - IoU; "log" is -log(max(IoU, 1e-6)); "square" is
            1 - IoU^2, as YOLOX has it.

    Raises:
        ValueError: if the form is unknown.

    Reference: Yu et al., UnitBox, sec. 3.1, arXiv:1608.01471 (log); mmdetection
        2.11, IoULoss, whose default is the log; YOLOX, IOUloss (square).

    >>> iou_loss(jnp.array([0, 0, 2, 2]), jnp.array([0, 0, 2, 1]), form="square")
    Array(0.75, dtype=float32)
    """
    _check_choice("form", form, IOU_FORMS)
    overlap = box_ops.iou(predictions, targets)
    if form == "log":
        return -jnp.log(jnp.maximum(overlap, _MIN_IOU))
    return 1 - (overlap**2 if form == "square" else overlap)


@check_shapes
def giou_loss(
    predictions: Real[Array, "*#S 4"], targets: Real[Array, "*#S 4"]
) -> Float[Array, "*S"]:
    """One minus the generalised IoU of boxes paired by broadcasting, in [0, 2].

    YOLOX 0.1 subtracts the intersection from the hull, not the union; its later
    code and this do not.

    Reference: Rezatofighi et al., Generalized IoU, sec. 3.1, arXiv:1902.09630.

    >>> giou_loss(jnp.array([0, 0, 1, 1]), jnp.array([3, 0, 4, 1]))
    Array(1.5, dtype=float32)
    """
    return 1 - box_ops.giou(predictions, targets)


@check_shapes
def diou_loss(
    predictions: Real[Array, "*#S 4"], targets: Real[Array, "*#S 4"]
) -> Float[Array, "*S"]:
    """One minus the distance IoU of boxes paired by broadcasting, in [0, 2].

    Reference: Zheng et al., Distance-IoU Loss, eq. 7, arXiv:1911.08287.

    >>> diou_loss(jnp.array([0, 0, 3, 4]), jnp.array([3, 4, 6, 8]))
    Array(1.25, dtype=float32)
    """
    return 1 - box_ops.diou(predictions, targets)


@check_shapes
def box_regression(
    anchors: Real[Array, "*#S 4"],
    deltas: Float[Array, "*#S 4"],
    targets: Real[Array, "*#S 4"],
    *,
    kind: str = "l1",
    beta: float = 1.0,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_ratio: float = box_coder.MAX_RATIO,
    limit_shrinking: bool = True,
) -> Float[Array, "*S"]:
    """The box loss of each anchor: of its deltas, or of the box that they make.

    "l1" and "smooth_l1" encode the targets, compare the deltas with that and
    sum over the four. "iou" (linear), "giou" and "diou" decode the deltas and
    compare boxes, as mmdetection does with reg_decoded_bbox. Only the deltas
    get a gradient. Empty boxes and zeros as padding give finite values and
    gradients; other padding must be overwritten before.

    Args:
        anchors: anchors or proposals, in pixels; all three go by broadcasting.
        deltas: normalised deltas from the anchors, as a head predicts them.
        targets: the ground-truth box of each anchor, in pixels.
        kind: one of BOX_LOSS_KINDS.
        beta: of "smooth_l1", positive; the others ignore it.
        means: of the deltas.
        stds: of the deltas.
        max_ratio: see `box_coder.decode`; the kinds that encode ignore it.
        limit_shrinking: likewise.

    Raises:
        ValueError: if the kind is unknown or beta is not positive.

    Reference: Ren et al., Faster R-CNN, eq. 1 and 2, arXiv:1506.01497;
        mmdetection 2.11, BBoxHead.loss.

    >>> box_regression(jnp.array([0, 0, 2, 2]), jnp.zeros(4), jnp.array([1, 0, 3, 2]), kind="l1")
    Array(0.5, dtype=float32)
    >>> box_regression(jnp.array([0, 0, 2, 2]), jnp.zeros(4), jnp.array([0, 0, 2, 1]), kind="iou")
    Array(0.5, dtype=float32)
    """
    _check_choice("kind", kind, BOX_LOSS_KINDS)
    anchors, targets = jax.lax.stop_gradient((anchors, targets))
    if kind in ("l1", "smooth_l1"):
        wanted = box_coder.encode(anchors, targets, means=means, stds=stds)
        if kind == "l1":
            return jnp.sum(losses.l1(deltas, wanted), axis=-1)
        return jnp.sum(losses.smooth_l1(deltas, wanted, beta=beta), axis=-1)
    limits = {"max_ratio": max_ratio, "limit_shrinking": limit_shrinking}
    decoded = box_coder.decode(anchors, deltas, means=means, stds=stds, **limits)
    return {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss}[kind](decoded, targets)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
