"""Fast R-CNN, alone on given proposals or as the second stage of Faster R-CNN.

Features and proposals -> assign -> sample -> pool -> box head -> losses; then
detections.

Reference: Girshick, Fast R-CNN, arXiv:1504.08083; Lin et al., FPN, sec. 4.2,
arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdet.detectors import features, views
from jaxdet.detectors.settings import (
    Assign,
    BoxLoss,
    Coder,
    Group,
    Pixels,
    Sample,
    Suppress,
    group,
)
from jaxdet.models import FPN, BoxHead, ResNet
from jaxdet.ops import box_coder, losses
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.assignment import append_ground_truth, assign_by_iou
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.roi_pooling import pyramid_roi_align, pyramid_roi_pool
from jaxdet.ops.sampling import pad_labels, sample_labels
from jaxdet.ops.suppression import nms_per_class
from jaxdet.types import (
    AxisName,
    Detections,
    Detector,
    Images,
    Metrics,
    Objects,
    Proposals,
    UserError,
)

# The coarsest map of an FPN holds no region; it serves the RPN alone.
MOST_LEVELS = 4

# Fields of `Pool` that "pool" has no use for.
OF_ALIGN = ("sampling_ratio", "max_sampling", "aligned")

# The regions of one image are enough for a device, and what is held meanwhile grows with each.
IMAGES_POOLED_AT_ONCE = 1


@group
class Pool(Group):
    """The features of a region; see `ops.roi_pooling`.

    Attributes:
        kind: "align", or "pool" for quantised maxima.
        output_size: bins an axis.
        finest_scale: regions of less than twice this side use the finest level.
        scale: regions are pooled this much larger than they are, about their centres.
        sampling_ratio: samples a bin and axis; 0 adapts to the region. Of "align".
        max_sampling: cap on adaptive samples. Of "align".
        aligned: shift by half a cell, so that cell centres are at integers. Of "align".
    """

    kind: str = "align"
    output_size: int = 7
    finest_scale: float = 56.0
    scale: float = 1.0
    sampling_ratio: int = 0
    max_sampling: int = 6
    aligned: bool = True


@group
class RoILoss(Group):
    """The two losses of the stage.

    Attributes:
        class_weight: of the class loss in the total.
        positive_weight: of a positive's class loss; 0 or less is 1.
        box: the box loss of a positive.
        box_weight: of the box loss in the total.
    """

    class_weight: float = 1.0
    positive_weight: float = -1.0
    box: BoxLoss = BoxLoss()
    box_weight: float = 1.0


@group
class RoIStage(Group):
    """The second stage, of whatever detector.

    Attributes:
        assign: which proposals learn an object.
        add_ground_truth: whether objects are regions themselves.
        sample: how many regions train.
        pool: their features.
        head: pooled regions -> class logits, background last, and deltas.
        coder: what the deltas mean.
        loss: what they learn by.
        suppress: the final boxes.
        confusion: count predicted against true classes of the sampled regions.
    """

    assign: Assign = Assign(positive_iou=0.5, negative_iou=(0.0, 0.5), match_low_quality=False)
    add_ground_truth: bool = True
    sample: Sample = Sample(num_samples=512, positive_fraction=0.25)
    pool: Pool = Pool()
    head: nn.Module = BoxHead()
    coder: Coder = Coder(stds=(0.1, 0.1, 0.2, 0.2))
    loss: RoILoss = RoILoss()
    suppress: Suppress = Suppress()
    confusion: bool = False


class RegionTargets(NamedTuple):
    """The regions of one image that train, and what they learn; label K is background."""

    rois: Float[Array, "S 4"]
    labels: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    boxes: Float[Array, "S 4"]  # Of the object, for positives.


class FastRCNN(features.Network):
    """Backbone, neck and box head.

    Attributes are those of `features.Network`, and:
        box_head: that of the stage.
        bins: bins an axis of a pooled region.
    """

    box_head: nn.Module
    bins: int

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.box_head(blank_region(self.features(x, train=False), self.bins))


def fast_rcnn(
    *,
    num_classes: int,
    pixels: Pixels = Pixels(),
    backbone: nn.Module = ResNet(),
    neck: nn.Module | None = FPN(num_levels=MOST_LEVELS),
    roi: RoIStage = RoIStage(),
    dtype: str = "float32",
    remat: str = "none",
) -> Detector:
    """Fast R-CNN on the proposals that come with the images.

    Args:
        num_classes: K, without background.
        pixels: how they reach the network.
        backbone: see `features.Network`; "frozen" norms want pretrained weights.
        neck: see there, too.
        roi: the stage.
        dtype: of the networks' computation, "float32" or "bfloat16".
        remat: what the backward pass computes again to save memory: "none", the
            "blocks" of the backbone, or "all": those, the neck and the heads.

    Raises:
        ValueError: for settings that do not work; many show only when `loss` or
            `predict` is traced.
        UserError: in `loss` and `predict`, if the images have no proposals.
    """
    network = FastRCNN(backbone, neck, make_head(roi, num_classes), roi.pool.output_size)
    network = features.prepare(network, dtype=dtype, remat=remat)
    strides = features.strides_of(network)

    def loss(variables, batch, key, *, final=False, axis_name=None):
        """Total loss of the batch; the mean over devices is that of the global batch."""
        del final  # Nothing in it changes while it trains.
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch.index)
        proposals = _given_proposals(batch.images)
        pyramid, batch_stats = features.extract(
            network, pixels, variables, batch.images, train=True, axis_name=axis_name
        )
        targets = batch_targets(roi, num_classes, keys, proposals, batch.objects)
        pooled = pool(roi.pool, pyramid, strides, targets.rois)
        logits, deltas = features.apply_head(network, "box_head", variables, pooled, keys)
        terms = region_losses(roi, logits, deltas, targets, axis_name=axis_name)
        metrics = region_metrics(roi, logits, targets, proposals, axis_name=axis_name)
        return sum(terms.values()), (Metrics(terms | metrics.means, metrics.counts), batch_stats)

    def predict(variables, images):
        """Detections of every image, best first, in canvas pixels."""
        proposals = _given_proposals(images)
        pyramid, _ = features.extract(network, pixels, variables, images, train=False)
        pooled = pool(roi.pool, pyramid, strides, proposals.boxes)
        logits, deltas = features.apply_head(network, "box_head", variables, pooled)
        return jax.vmap(partial(detections, roi))(logits, deltas, proposals, images.sizes)

    return features.make_detector(
        network,
        pixels,
        loss,
        predict,
        matrices=matrices(roi),
        merge=views.merger(roi.suppress, num_classes),
    )


def make_head(stage: RoIStage, num_classes: int) -> nn.Module:
    """The stage's head, for so many classes."""
    return features.configure(stage.head, num_classes=num_classes)


def matrices(stage: RoIStage) -> dict[str, tuple]:
    """What the stage's confusion matrix is called, and the names of its rows and columns."""
    return {"roi_confusion": (..., "background")} if stage.confusion else {}


def blank_region(pyramid: tuple[Array, ...], bins: int) -> Float[Array, "1 1 h w C"]:
    """One pooled region, which shows the head its sizes.

    Raises:
        ValueError: if it has no bin.
    """
    if bins < 1:
        raise ValueError(f"output_size must be at least 1, found {bins}")
    return jnp.zeros((1, 1, bins, bins, pyramid[0].shape[-1]))


def batch_targets(
    stage: RoIStage,
    num_classes: int,
    keys: Key[Array, " B"],
    proposals: Proposals,
    objects: Objects,
) -> RegionTargets:
    """`region_targets` of every image."""
    return jax.vmap(partial(region_targets, stage, num_classes))(keys, proposals, objects)


def region_targets(
    stage: RoIStage, num_classes: int, key: Key[Array, ""], proposals: Proposals, objects: Objects
) -> RegionTargets:
    """Assigns and samples the proposals of one image, and its ground truth among them."""
    candidates = jax.lax.stop_gradient(proposals.boxes)
    truth = objects.boxes, objects.valid
    assignment = assign_by_iou(
        candidates, proposals.valid, *truth, objects.crowd, **vars(stage.assign)
    )
    if stage.add_ground_truth:
        candidates, assignment = append_ground_truth(candidates, assignment, *truth)
    labels = pad_labels(assignment.labels, stage.sample.num_samples)
    samples = sample_labels(key, labels, **vars(stage.sample))
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    rois = jnp.where(samples.valid[:, None], candidates[samples.index], 0.0)
    slot = assignment.index[samples.index]
    return RegionTargets(
        rois,
        jnp.where(samples.positive, objects.labels[slot], num_classes),
        samples.positive,
        samples.valid,
        jnp.where(samples.positive[:, None], objects.boxes[slot], 0.0),
    )


def pool(
    settings: Pool,
    pyramid: tuple[Array, ...],
    strides: tuple[int, ...],
    rois: Float[Array, "B S 4"],
) -> Float[Array, "B S h w C"]:
    """The features of every region, on a grid of `output_size` bins.

    Maps end where the canvas ends, as in mmdetection, not where the image does:
    bins at the border of a smaller image read the padding beside it.

    Raises:
        ValueError: if `kind` is unknown.
    """
    keywords = vars(settings) | {"strides": strides[:MOST_LEVELS]}
    kind, scale = keywords.pop("kind"), keywords.pop("scale")
    if kind not in ("align", "pool"):
        raise ValueError(f"kind of pooling must be 'align' or 'pool', found {kind!r}")
    if kind == "pool":
        for name in OF_ALIGN:
            del keywords[name]
    method = partial(pyramid_roi_align if kind == "align" else pyramid_roi_pool, **keywords)
    if scale != 1:
        rois = box_ops.rescale(rois, scale)
    # A few images at a time: what all regions hold while they are read would fill the memory.
    return jax.lax.map(
        lambda image: method(*image),
        (pyramid[:MOST_LEVELS], rois),
        batch_size=min(IMAGES_POOLED_AT_ONCE, len(rois)),
    )


def region_losses(
    stage: RoIStage,
    logits: Float[Array, "B S K1"],
    deltas: Float[Array, "B S k 4"],
    targets: RegionTargets,
    *,
    axis_name: AxisName | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both losses of the regions, divided by all those sampled in the global batch; K1 is K + 1."""
    loss = stage.loss
    count = losses.global_count(jnp.sum(targets.valid), axis_name)
    classes = losses.softmax_cross_entropy(logits, targets.labels)
    weights = losses.sample_weights(
        targets.positive, targets.valid, positive_weight=loss.positive_weight
    )
    own = jnp.where(targets.positive, targets.labels, 0) if deltas.shape[2] > 1 else 0
    own = jnp.broadcast_to(own, targets.labels.shape)
    deltas = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    box = box_regression(targets.rois, deltas, targets.boxes, **vars(loss.box), **vars(stage.coder))
    class_sum = losses.masked_sum(classes * weights, targets.valid)
    return {
        "class_loss": loss.class_weight * class_sum / count,
        "box_loss": loss.box_weight * losses.masked_sum(box, targets.positive) / count,
    }


def region_metrics(
    stage: RoIStage,
    logits: Float[Array, "B S K1"],
    targets: RegionTargets,
    proposals: Proposals,
    *,
    axis_name: AxisName | None = None,
) -> Metrics:
    """What else is measured in training: accuracy, numbers and, where asked, the confusion."""
    found = jnp.argmax(logits, axis=-1)
    hits = losses.masked_sum(found == targets.labels, targets.valid)
    accuracy = hits / losses.global_count(jnp.sum(targets.valid), axis_name)
    counts = {
        "roi_positives": jnp.sum(targets.positive),
        "proposals": jnp.sum(proposals.valid),
    }
    if stage.confusion:  # Rows are the truth, columns the prediction; background last.
        counts["roi_confusion"] = losses.confusion_matrix(
            targets.labels.ravel(),
            found.ravel(),
            targets.valid.ravel(),
            num_classes=logits.shape[-1],
        )
    return Metrics({"accuracy": accuracy}, counts)


def detections(
    stage: RoIStage,
    logits: Float[Array, "P K1"],
    deltas: Float[Array, "P k 4"],
    proposals: Proposals,
    size: Int[Array, "2"],
) -> Detections:
    """The final boxes of one image; K1 is K + 1."""
    scores = jax.nn.softmax(logits, axis=-1)[:, :-1]
    boxes = box_coder.decode(proposals.boxes[:, None], deltas, size=size, **vars(stage.coder))
    return nms_per_class(boxes, scores, proposals.valid, **vars(stage.suppress))


def _given_proposals(images: Images) -> Proposals:
    if images.proposals is None:
        raise UserError(
            "fast_rcnn needs proposals: name their file in data.proposals and set "
            "data.max_proposals, or take the detector faster_rcnn"
        )
    return images.proposals
