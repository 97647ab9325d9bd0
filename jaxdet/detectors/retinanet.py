"""RetinaNet on a ResNet-FPN: every anchor is classified, none is sampled.

Features -> towers -> anchors -> assign -> focal and box loss; then, of each
level, the best anchors -> boxes -> suppression.

Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002;
defaults and details are those of mmdetection 2.11.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.detectors import anchor_grid, features, views
from jaxdet.detectors.anchor_grid import Anchors
from jaxdet.detectors.settings import (
    AnchorGrid,
    Assign,
    BoxLoss,
    Coder,
    Group,
    Inside,
    Pixels,
    Suppress,
    group,
)
from jaxdet.models import FPN, ResNet, RetinaHead
from jaxdet.ops import box_coder, losses
from jaxdet.ops.anchors import octave_scales
from jaxdet.ops.assignment import IGNORE, POSITIVE
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.proposals import best_of_levels
from jaxdet.ops.suppression import nms_per_class
from jaxdet.types import AxisName, Detections, Detector, Metrics, Objects


@group
class RetinaLoss(Group):
    """The two losses.

    Attributes:
        alpha: weight of positives in the focal loss, 1 - this of negatives.
        gamma: power by which easy anchors are discounted.
        class_weight: of the focal loss in the total.
        box: the box loss of a positive.
        box_weight: of the box loss in the total.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    class_weight: float = 1.0
    box: BoxLoss = BoxLoss()
    box_weight: float = 1.0


class DenseTargets(NamedTuple):
    """What every anchor of one image learns; label K is no object."""

    labels: Int[Array, " N"]
    positive: Bool[Array, " N"]
    valid: Bool[Array, " N"]
    boxes: Float[Array, "N 4"]  # Of the object, for positives.


class RetinaNet(features.Network):
    """Backbone, neck and head.

    Attributes are those of `features.Network`, and:
        retina_head: pyramid -> class logits (B, N, K) and deltas (B, N, 4).
    """

    retina_head: nn.Module

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.retina_head(self.features(x, train=False))


def retinanet(
    *,
    num_classes: int,
    pixels: Pixels = Pixels(),
    backbone: nn.Module = ResNet(),
    neck: nn.Module | None = FPN(start_level=1, extra="on_input"),
    head: nn.Module = RetinaHead(),
    anchors: AnchorGrid = AnchorGrid(scales=octave_scales(4.0, 3)),
    inside: Inside = Inside(),
    assign: Assign = Assign(positive_iou=0.5, negative_iou=0.4),
    coder: Coder = Coder(),
    loss: RetinaLoss = RetinaLoss(),
    pre_nms: int = 1000,
    pre_nms_pairs: bool = False,
    suppress: Suppress = Suppress(),
    dtype: str = "float32",
    remat: str = "none",
) -> Detector:
    """RetinaNet, on an FPN or on the maps of a backbone alone.

    Args:
        num_classes: K.
        pixels: how they reach the network.
        backbone: see `features.Network`; "frozen" norms want pretrained weights.
        neck: see there, too; P6 and P7 are convolutions on top of C5.
        head: pyramid -> class logits (B, N, K) and deltas (B, N, 4).
        anchors: what the deltas change; the scales are three an octave.
        inside: the anchors that may train.
        assign: which of them learn an object; between both overlaps, none.
        coder: what the deltas mean.
        loss: what they learn by.
        pre_nms: anchors of each level that are decoded in prediction, by their best class.
        pre_nms_pairs: whether it counts pairs of anchor and class instead, as in torchvision.
        suppress: the final boxes.
        dtype: of the networks' computation, "float32" or "bfloat16".
        remat: what the backward pass computes again to save memory: "none", the
            "blocks" of the backbone, or "all": those, the neck and the heads.

    Raises:
        ValueError: for settings that do not work; many show only when `loss` or
            `predict` is traced.
    """
    head = features.configure(head, num_classes=num_classes, num_anchors=anchors.num_base)
    network = RetinaNet(backbone, neck, head)
    network = features.prepare(network, dtype=dtype, remat=remat)
    make_anchors = partial(
        anchor_grid.make_anchors, strides=features.strides_of(network), **vars(anchors)
    )

    def total_loss(variables, batch, key, *, final=False, axis_name=None):
        """Total loss of the batch; the mean over devices is that of the global batch."""
        del key, final  # Nothing is drawn, nothing changes while it trains.
        pyramid, batch_stats = features.extract(
            network, pixels, variables, batch.images, train=True, axis_name=axis_name
        )
        logits, deltas = features.apply_head(network, "retina_head", variables, pyramid)
        grid = make_anchors(pyramid, batch.images)
        one = partial(anchor_targets, grid.boxes, inside=inside, assign=assign)
        targets = jax.vmap(partial(one, num_classes=num_classes))(
            grid.valid, batch.images.sizes, batch.objects
        )
        terms = anchor_losses(loss, coder, logits, deltas, grid, targets, axis_name=axis_name)
        counts = {"positives": jnp.sum(targets.positive)}
        return sum(terms.values()), (Metrics(terms, counts), batch_stats)

    def predict(variables, images):
        """Detections of every image, best first, in canvas pixels."""
        pyramid, _ = features.extract(network, pixels, variables, images, train=False)
        logits, deltas = features.apply_head(network, "retina_head", variables, pyramid)
        grid = make_anchors(pyramid, images)
        one = partial(
            detections,
            grid.boxes,
            level_sizes=grid.level_sizes,
            pre_nms=pre_nms,
            pre_nms_pairs=pre_nms_pairs,
            coder=coder,
        )
        may_predict = anchor_grid.may_predict(grid, anchors)
        return jax.vmap(partial(one, suppress=suppress))(logits, deltas, may_predict, images.sizes)

    return features.make_detector(
        network,
        pixels,
        total_loss,
        predict,
        assign=anchor_grid.assigner(network, pixels, anchors, inside, assign),
        merge=views.merger(suppress, num_classes),
    )


def anchor_targets(
    anchors: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: Objects,
    *,
    num_classes: int,
    inside: Inside,
    assign: Assign,
) -> DenseTargets:
    """Assigns all anchors of one image."""
    assignment = anchor_grid.assign(
        anchors, anchors_valid, size, objects, inside=inside, assign=assign
    )
    positive = assignment.labels == POSITIVE
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    matched = jnp.where(positive[:, None], objects.boxes[assignment.index], 0.0)
    labels = jnp.where(positive, objects.labels[assignment.index], num_classes)
    return DenseTargets(labels, positive, assignment.labels != IGNORE, matched)


def anchor_losses(
    loss: RetinaLoss,
    coder: Coder,
    logits: Float[Array, "B N K"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    targets: DenseTargets,
    *,
    axis_name: AxisName | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both losses, each summed and divided by the positives of the global batch.

    The reference counts at least one positive an image.
    """
    num_positives = jnp.sum(jnp.maximum(jnp.sum(targets.positive, axis=1), 1))
    count = losses.global_count(num_positives, axis_name)
    # No object is no class: a row of zeros.
    one_hot = jax.nn.one_hot(targets.labels, logits.shape[-1])
    focal = losses.sigmoid_focal(logits, one_hot, alpha=loss.alpha, gamma=loss.gamma)
    all_anchors = jnp.broadcast_to(anchors.boxes, targets.boxes.shape)
    box = box_regression(all_anchors, deltas, targets.boxes, **vars(loss.box), **vars(coder))
    return {
        "class_loss": loss.class_weight * losses.masked_sum(focal, targets.valid) / count,
        "box_loss": loss.box_weight * losses.masked_sum(box, targets.positive) / count,
    }


def detections(
    anchors: Float[Array, "N 4"],
    logits: Float[Array, "N K"],
    deltas: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    level_sizes: tuple[int, ...],
    pre_nms: int,
    coder: Coder,
    suppress: Suppress,
    pre_nms_pairs: bool = False,
) -> Detections:
    """The final boxes of one image."""
    scores = jax.nn.sigmoid(logits)
    if pre_nms_pairs:
        scores = best_pairs(scores, anchors_valid, level_sizes=level_sizes, count=pre_nms)
    ranked = jnp.where(anchors_valid, jnp.max(scores, axis=-1), -jnp.inf)
    best, index = (x.ravel() for x in best_of_levels(ranked, level_sizes, pre_nms))
    boxes = box_coder.decode(anchors[index], deltas[index], size=size, **vars(coder))
    return nms_per_class(boxes[:, None], scores[index], best > -jnp.inf, **vars(suppress))


def best_pairs(
    scores: Float[Array, "N K"],
    anchors_valid: Bool[Array, " N"],
    *,
    level_sizes: tuple[int, ...],
    count: int,
) -> Float[Array, "N K"]:
    """Scores with all but the `count` best pairs of anchor and class of each level at 0."""
    num_classes = scores.shape[1]
    ranked = jnp.where(anchors_valid[:, None], scores, -jnp.inf).ravel()
    best, index = best_of_levels(ranked, [size * num_classes for size in level_sizes], count)
    # Levels of fewer pairs end in -inf at an index of another pair, which stays what it is.
    return jnp.zeros(scores.size).at[index.ravel()].max(best.ravel()).reshape(scores.shape)
