"""Region proposal network, alone or as the first stage of Faster R-CNN.

Features -> head -> anchors -> assign -> sample -> losses; then proposals. Alone
it is a detector of one class: whatever the data annotates, scored by objectness.

Reference: Ren et al., Faster R-CNN, sec. 3.1, arXiv:1506.01497; Lin et al., FPN,
sec. 4.1, arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

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
    Sample,
    Suppress,
    group,
)
from jaxdet.models import FPN, ResNet, RPNHead
from jaxdet.ops import losses
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.proposals import generate_proposals
from jaxdet.ops.sampling import pad_labels, sample_labels
from jaxdet.types import AxisName, Batch, Detections, Detector, Images, Metrics, Objects, Proposals

# Rows and columns of the confusion matrix.
OBJECTNESS = ("object", "background")


@group
class Propose(Group):
    """Boxes from objectness and deltas; see `ops.proposals.generate_proposals`.

    Attributes:
        pre_nms: anchors of each level that are decoded, by their score.
        iou_threshold: proposals of a level that overlap more than this are duplicates.
        num_proposals: proposals an image.
        min_size: shorter sides are dropped, in pixels of the canvas.
        min_size_of_original: whether those are pixels of the original image.
        filter_first: whether they are dropped before `pre_nms` counts.
    """

    pre_nms: int = 1000
    iou_threshold: float = 0.7
    num_proposals: int = 1000
    min_size: float = 0.0
    min_size_of_original: bool = False
    filter_first: bool = False


@group
class RPNLoss(Group):
    """The two losses of the stage.

    Attributes:
        class_weight: of the objectness loss in the total.
        positive_weight: of a positive's objectness loss; 0 or less is 1.
        box: the box loss of a positive.
        box_weight: of the box loss in the total.
        box_normalizer: what the box loss is divided by, "samples" or "positives".
        least_samples: so many positives, and negatives, an image counts as at
            least, where the losses are divided by them.
    """

    class_weight: float = 1.0
    positive_weight: float = -1.0
    box: BoxLoss = BoxLoss()
    box_weight: float = 1.0
    box_normalizer: str = "samples"
    least_samples: int = 1


@group
class RPNStage(Group):
    """The region proposal network, of whatever detector.

    Attributes:
        head: pyramid -> objectness logits (B, N) and deltas (B, N, 4).
        anchors: what the deltas change.
        inside: the anchors that may train.
        assign: which of them learn an object.
        sample: how many of them train.
        coder: what the deltas mean.
        loss: what they learn by.
        train: proposals while Faster R-CNN trains.
        test: proposals in prediction.
        confusion: count predicted against wanted objectness of the sampled anchors.
    """

    head: nn.Module = RPNHead()
    anchors: AnchorGrid = AnchorGrid()
    inside: Inside = Inside()
    assign: Assign = Assign(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3)
    sample: Sample = Sample(num_samples=256, positive_fraction=0.5)
    coder: Coder = Coder()
    loss: RPNLoss = RPNLoss()
    train: Propose = Propose(pre_nms=2000)
    test: Propose = Propose()
    confusion: bool = False


class AnchorTargets(NamedTuple):
    """The anchors of one image that train, and what they learn."""

    index: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    boxes: Float[Array, "S 4"]  # Of the object, for positives.


class RPN(features.Network):
    """Backbone, neck and head.

    Attributes are those of `features.Network`, and:
        rpn_head: that of the stage.
    """

    rpn_head: nn.Module

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.rpn_head(self.features(x, train=False))


def rpn(
    *,
    num_classes: int = 1,
    pixels: Pixels = Pixels(),
    backbone: nn.Module = ResNet(),
    neck: nn.Module | None = FPN(),
    rpn: RPNStage = RPNStage(),
    dtype: str = "float32",
    remat: str = "none",
) -> Detector:
    """A region proposal network as a detector of one class, label 0.

    Args:
        num_classes: of the data; objects of all classes are learnt alike.
        pixels: how they reach the network.
        backbone: see `features.Network`; "frozen" norms want pretrained weights.
        neck: see there, too.
        rpn: the stage; of its proposals `test` counts.
        dtype: of the networks' computation, "float32" or "bfloat16".
        remat: what the backward pass computes again to save memory: "none", the
            "blocks" of the backbone, or "all": those, the neck and the heads.

    Raises:
        ValueError: for settings that do not work; many show only when `loss` or
            `predict` is traced.
    """
    del num_classes
    network = RPN(backbone, neck, make_head(rpn))
    network = features.prepare(network, dtype=dtype, remat=remat)
    strides = features.strides_of(network)

    def loss(variables, batch, key, *, final=False, axis_name=None):
        """Total loss of the batch; the mean over devices is that of the global batch."""
        del final  # Nothing in it changes while it trains.
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch.index)
        pyramid, batch_stats = features.extract(
            network, pixels, variables, batch.images, train=True, axis_name=axis_name
        )
        logits, deltas = features.apply_head(network, "rpn_head", variables, pyramid)
        anchors = make_anchors(rpn, pyramid, strides, batch.images)
        targets = batch_targets(rpn, keys, anchors, batch)
        terms = rpn_losses(rpn, logits, deltas, anchors, targets, axis_name=axis_name)
        counts = rpn_counts(rpn, logits, targets)
        return sum(terms.values()), (Metrics(terms, counts), batch_stats)

    def predict(variables, images):
        """Proposals of every image as detections, best first, in canvas pixels."""
        pyramid, _ = features.extract(network, pixels, variables, images, train=False)
        logits, deltas = features.apply_head(network, "rpn_head", variables, pyramid)
        anchors = make_anchors(rpn, pyramid, strides, images)
        found = propose(rpn, rpn.test, logits, deltas, anchors, images)
        labels = jnp.zeros(found.valid.shape, jnp.int32)
        return Detections(found.boxes, found.scores, labels, found.valid)

    return features.make_detector(
        network,
        pixels,
        loss,
        predict,
        tells_classes=False,
        matrices=matrices(rpn),
        assign=anchor_grid.assigner(network, pixels, rpn.anchors, rpn.inside, rpn.assign),
        merge=views.merger(_suppression(rpn.test), num_classes=1),
    )


def make_head(stage: RPNStage) -> nn.Module:
    """The stage's head, for its anchors."""
    return features.configure(stage.head, num_anchors=stage.anchors.num_base)


def matrices(stage: RPNStage) -> dict[str, tuple]:
    """What the stage's confusion matrix is called, and the names of its rows and columns."""
    return {"rpn_confusion": OBJECTNESS} if stage.confusion else {}


def make_anchors(
    stage: RPNStage, pyramid: tuple[Array, ...], strides: tuple[int, ...], images: Images
) -> Anchors:
    """The stage's anchors on a pyramid."""
    return anchor_grid.make_anchors(pyramid, images, strides=strides, **vars(stage.anchors))


def batch_targets(
    stage: RPNStage, keys: Key[Array, " B"], anchors: Anchors, batch: Batch
) -> AnchorTargets:
    """`anchor_targets` of every image."""
    one = jax.vmap(partial(anchor_targets, stage), in_axes=(0, None, 0, 0, 0))
    return one(keys, anchors.boxes, anchors.valid, batch.images.sizes, batch.objects)


def anchor_targets(
    stage: RPNStage,
    key: Key[Array, ""],
    anchors: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: Objects,
) -> AnchorTargets:
    """Assigns and samples the anchors of one image."""
    assignment = anchor_grid.assign(
        anchors, anchors_valid, size, objects, inside=stage.inside, assign=stage.assign
    )
    labels = pad_labels(assignment.labels, stage.sample.num_samples)
    samples = sample_labels(key, labels, **vars(stage.sample))
    matched = objects.boxes[assignment.index[samples.index]]
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    matched = jnp.where(samples.positive[:, None], matched, 0.0)
    return AnchorTargets(samples.index, samples.positive, samples.valid, matched)


def rpn_losses(
    stage: RPNStage,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    targets: AnchorTargets,
    *,
    axis_name: AxisName | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both RPN losses, summed and divided by the sampled anchors of the global batch.

    The box loss may be divided by the positives instead, at least one in all.

    Raises:
        ValueError: if `box_normalizer` is unknown.
    """
    loss = stage.loss
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    negative = targets.valid & ~targets.positive
    num_samples = sum(
        jnp.sum(jnp.maximum(jnp.sum(drawn, axis=1), loss.least_samples))
        for drawn in (targets.positive, negative)
    )
    count = losses.global_count(num_samples, axis_name)
    box_count = _box_count(loss, count, targets, axis_name)
    objectness = losses.sigmoid_cross_entropy(logits, targets.positive)
    weights = losses.sample_weights(
        targets.positive, targets.valid, positive_weight=loss.positive_weight
    )
    own = anchors.boxes[targets.index]
    box = box_regression(own, deltas, targets.boxes, **vars(loss.box), **vars(stage.coder))
    class_sum = losses.masked_sum(objectness * weights, targets.valid)
    return {
        "rpn_class_loss": loss.class_weight * class_sum / count,
        "rpn_box_loss": loss.box_weight * losses.masked_sum(box, targets.positive) / box_count,
    }


def _box_count(loss, samples, targets, axis_name):
    if loss.box_normalizer == "samples":
        return samples
    if loss.box_normalizer == "positives":
        return losses.global_count(jnp.sum(targets.positive), axis_name)
    raise ValueError(
        f"box_normalizer must be 'samples' or 'positives', found {loss.box_normalizer!r}"
    )


def rpn_counts(
    stage: RPNStage, logits: Float[Array, "B N"], targets: AnchorTargets
) -> dict[str, Array]:
    """What is counted in training: positives, and where asked the confusion matrix.

    Its rows are the truth and its columns what the logit's sign says; object, then background.
    """
    counts = {"rpn_positives": jnp.sum(targets.positive)}
    if stage.confusion:
        says_object = jnp.take_along_axis(logits, targets.index, axis=1) > 0
        counts["rpn_confusion"] = losses.confusion_matrix(
            (~targets.positive).astype(jnp.int32).ravel(),
            (~says_object).astype(jnp.int32).ravel(),
            targets.valid.ravel(),
            num_classes=2,
        )
    return counts


def _suppression(settings: Propose) -> Suppress:
    """How proposals of several views, whatever their level, suppress each other."""
    return Suppress(
        score_threshold=0.0,
        iou_threshold=settings.iou_threshold,
        max_detections=settings.num_proposals,
        max_candidates=10**9,
    )


def propose(
    stage: RPNStage,
    settings: Propose,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    images: Images,
) -> Proposals:
    """The best boxes of every image; no gradient flows through them.

    Args:
        stage: whose deltas these are.
        settings: its `train` or `test`.
        logits: objectness of all anchors.
        deltas: of all anchors.
        anchors: of the batch.
        images: the batch.
    """
    keywords = vars(settings) | vars(stage.coder)
    min_size = jnp.full(images.scales.shape, keywords.pop("min_size"))
    if keywords.pop("min_size_of_original"):
        min_size *= images.scales
    # Proposals are inputs of the second stage, not a path for its gradient.
    scores, deltas = jax.lax.stop_gradient((jax.nn.sigmoid(logits), deltas))
    may_predict = anchor_grid.may_predict(anchors, stage.anchors)
    one = partial(generate_proposals, level_sizes=anchors.level_sizes, **keywords)
    return jax.vmap(
        lambda scores, deltas, valid, size, min_size: one(
            scores, deltas, anchors.boxes, valid, size, min_size=min_size
        )
    )(scores, deltas, may_predict, images.sizes, min_size)
