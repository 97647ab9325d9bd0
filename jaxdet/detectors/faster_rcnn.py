"""Faster R-CNN on a ResNet-FPN.

Features -> RPN -> anchors -> assign -> sample -> RPN losses -> proposals ->
assign -> sample -> RoIAlign -> box head -> box losses; then prediction.

Reference: Ren et al., Faster R-CNN, arXiv:1506.01497; Lin et al., FPN,
arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdet.models.box_head import BoxHead
from jaxdet.models.fpn import FPN
from jaxdet.models.resnet import ResNet
from jaxdet.models.rpn_head import RPNHead
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder, losses, pixels
from jaxdet.ops.assignment import IGNORE, POSITIVE, assign_by_iou
from jaxdet.ops.nms import nms_per_class
from jaxdet.ops.proposals import generate_proposals
from jaxdet.ops.roi_pooling import pyramid_roi_align
from jaxdet.ops.sampling import sample_labels
from jaxdet.types import Batch, Detections, Detector, Images, Metrics, Proposals

# The finest four levels hold the regions; the coarsest serves the RPN alone.
STRIDES = (4, 8, 16, 32, 64)
NUM_ROI_LEVELS = 4

# 512 regions of 4 images gather 4 GB at 256 channels and the default `max_sampling`.
IMAGES_POOLED_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Keyword arguments of `faster_rcnn`, with mmdetection's defaults.

    Attributes:
        num_classes: K, without background.
        depth: of the ResNet: 10, 18, 34, 50 or 101.
        width: channels of its stem.
        norm: "frozen", "batch", "sync" or "group"; "frozen" needs pretrained weights.
        style: "pytorch" or "caffe": where bottlenecks stride.
        frozen_stages: leading backbone stages that do not train, 0..4.
        zero_init_residual: blocks start as the identity.
        fpn_channels: of the pyramid and the RPN.
        dtype: of the networks' computation, "float32" or "bfloat16".
        pixel_mean: of RGB in 0..255, subtracted from every pixel.
        pixel_std: of RGB, which pixels are divided by.
        size_divisor: an image's sides are rounded up to it; anchors beyond are unused.
        anchor_scales: sides of the square anchors, in strides.
        anchor_ratios: height / width of the anchors.
        allowed_border: pixels an anchor may leave the image by to train; -1 for any.
        ignore_iof_threshold: anchors and proposals inside crowd regions by more
            than this fraction are ignored; -1 for off.
        rpn_positive_iou: anchors of at least this overlap are positive.
        rpn_negative_iou: anchors of less than this overlap are negative.
        rpn_min_positive_iou: lowest overlap of an object's best anchors.
        rpn_num_samples: anchors an image that train.
        rpn_positive_fraction: largest share of positives among them.
        rpn_beta: of smooth L1 on anchor deltas; 0 is L1.
        rpn_pre_nms: anchors of each level that are decoded in training.
        rpn_pre_nms_test: the same in prediction.
        rpn_nms_iou: proposals that overlap more than this are duplicates.
        num_proposals: proposals an image in training.
        num_proposals_test: the same in prediction.
        min_proposal_size: shorter sides are dropped, in pixels.
        roi_positive_iou: proposals of at least this overlap are positive, others background.
        roi_num_samples: regions an image that train; ground truth is among them.
        roi_positive_fraction: largest share of positives among them.
        roi_size: bins an axis.
        sampling_ratio: samples a bin and axis; 0 adapts to the region.
        max_sampling: cap on adaptive samples.
        finest_scale: regions of less than twice this side use the finest level.
        hidden: units of the two fully connected layers.
        class_agnostic: one box for all classes.
        box_stds: of the region deltas.
        box_beta: of smooth L1 on region deltas; 0 is L1.
        score_threshold: lowest score of a detection.
        nms_iou: detections of a class that overlap more than this are duplicates.
        max_detections: detections an image.
        max_candidates: pairs of box and class an image that suppression looks at.
    """

    num_classes: int
    depth: int = 50
    width: int = 64
    norm: str = "frozen"
    style: str = "pytorch"
    frozen_stages: int = 0
    zero_init_residual: bool = False
    fpn_channels: int = 256
    dtype: str = "float32"
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    size_divisor: int = 32
    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    allowed_border: float = -1.0
    ignore_iof_threshold: float = -1.0
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3
    rpn_num_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_beta: float = 0.0
    rpn_pre_nms: int = 2000
    rpn_pre_nms_test: int = 1000
    rpn_nms_iou: float = 0.7
    num_proposals: int = 1000
    num_proposals_test: int = 1000
    min_proposal_size: float = 0.0
    roi_positive_iou: float = 0.5
    roi_num_samples: int = 512
    roi_positive_fraction: float = 0.25
    roi_size: int = 7
    sampling_ratio: int = 0
    max_sampling: int = 6
    finest_scale: float = 56.0
    hidden: int = 1024
    class_agnostic: bool = False
    box_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    box_beta: float = 0.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    max_candidates: int = 2000


class AnchorTargets(NamedTuple):
    """The anchors of one image that train, and what they learn."""

    index: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    deltas: Float[Array, "S 4"]


class RegionTargets(NamedTuple):
    """The regions of one image that train, and what they learn; label K is background."""

    boxes: Float[Array, "S 4"]
    labels: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    deltas: Float[Array, "S 4"]


class FasterRCNN(nn.Module):
    """Backbone, neck and heads; `settings` are those of `faster_rcnn`."""

    settings: Settings
    axis_name: str | None = None

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        self.backbone = ResNet(
            depth=s.depth,
            width=s.width,
            norm=s.norm,
            style=s.style,
            frozen_stages=s.frozen_stages,
            zero_init_residual=s.zero_init_residual,
            axis_name=self.axis_name,
            dtype=dtype,
        )
        self.neck = FPN(channels=s.fpn_channels, num_levels=len(STRIDES), dtype=dtype)
        num_anchors = len(s.anchor_scales) * len(s.anchor_ratios)
        self.rpn_head = RPNHead(num_anchors=num_anchors, channels=s.fpn_channels, dtype=dtype)
        self.box_head = BoxHead(
            num_classes=s.num_classes,
            hidden=s.hidden,
            class_agnostic=s.class_agnostic,
            dtype=dtype,
        )

    def features(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Array, ...]:
        """The pyramid of normalised images, finest level first."""
        return self.neck(self.backbone(x, train=train))

    def rpn(self, pyramid: tuple[Array, ...]) -> tuple[Array, Array]:
        """Objectness logits (B, N) and deltas (B, N, 4) of all anchors."""
        return self.rpn_head(pyramid)

    def roi(self, regions: Float[Array, "B S h w C"]) -> tuple[Array, Array]:
        """Class logits (B, S, K + 1) and deltas (B, S, K or 1, 4) of pooled regions."""
        return self.box_head(regions)

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        s = self.settings
        self.rpn(self.features(x, train=False))
        self.roi(jnp.zeros((1, 1, s.roi_size, s.roi_size, s.fpn_channels)))


def faster_rcnn(**settings: Any) -> Detector:
    """Faster R-CNN with a ResNet-FPN backbone.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
    """
    s = Settings(**settings)
    return Detector(partial(_init, s), partial(_loss, s), partial(_predict, s))


def _init(s: Settings, key: Key[Array, ""], images: Images) -> dict:
    # Under jit only the parameters are computed: the forward pass is dead code.
    return jax.jit(FasterRCNN(s).init)(key, _normalize(s, images))


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, step=0, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del step  # Nothing in Faster R-CNN changes while it trains.
    network = FasterRCNN(s, axis_name)
    keys = jax.vmap(jax.random.split)(jax.vmap(partial(jax.random.fold_in, key))(batch.index))
    objects = (batch.boxes, batch.labels, batch.valid, batch.crowd)
    sizes = batch.images.sizes

    x = _normalize(s, batch.images)
    mutable = ["batch_stats"] if "batch_stats" in variables else False
    result = network.apply(variables, x, train=True, method="features", mutable=mutable)
    pyramid, updates = result if mutable else (result, {})
    logits, deltas = network.apply(variables, pyramid, method="rpn")

    anchors, level_sizes, anchors_valid = _anchors(s, pyramid, sizes)
    targets = jax.vmap(partial(anchor_targets, s), in_axes=(0, None, 0, 0, 0))(
        keys[:, 0], anchors, anchors_valid, sizes, objects
    )
    terms = rpn_losses(s, logits, deltas, targets, axis_name=axis_name)

    proposals = _propose(s, logits, deltas, anchors, anchors_valid, sizes, level_sizes, train=True)
    regions = jax.vmap(partial(region_targets, s))(keys[:, 1], proposals, objects)
    class_logits, box_deltas = network.apply(
        variables, _pool(s, pyramid, regions.boxes), method="roi"
    )
    terms |= box_losses(s, class_logits, box_deltas, regions, axis_name=axis_name)

    total = sum(terms.values())
    hits = jax.vmap(losses.accuracy)(class_logits, regions.labels, regions.valid)
    counts = {
        "rpn_positives": jnp.sum(targets.positive),
        "roi_positives": jnp.sum(regions.positive),
        "proposals": jnp.sum(proposals.valid),
    }
    means = {**terms, "accuracy": jnp.mean(hits)}
    return total, (Metrics(means, counts), updates.get("batch_stats", {}))


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Detections of every image, best first, in canvas pixels."""
    network = FasterRCNN(s)
    pyramid = network.apply(variables, _normalize(s, images), train=False, method="features")
    logits, deltas = network.apply(variables, pyramid, method="rpn")
    anchors, level_sizes, valid = _anchors(s, pyramid, images.sizes)
    proposals = _propose(s, logits, deltas, anchors, valid, images.sizes, level_sizes, train=False)
    class_logits, box_deltas = network.apply(
        variables, _pool(s, pyramid, proposals.boxes), method="roi"
    )
    return jax.vmap(partial(detections, s))(class_logits, box_deltas, proposals, images.sizes)


def anchor_targets(
    s: Settings,
    key: Key[Array, ""],
    anchors: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: tuple[Array, Array, Array, Array],
) -> AnchorTargets:
    """Assigns and samples the anchors of one image; `objects` as in `Batch`."""
    boxes, _, valid, crowd = objects
    inside = anchor_ops.inside_image(anchors, size, allowed_border=s.allowed_border)
    assignment = assign_by_iou(
        anchors,
        anchors_valid & inside,
        boxes,
        valid,
        crowd,
        positive_iou=s.rpn_positive_iou,
        negative_iou=s.rpn_negative_iou,
        min_positive_iou=s.rpn_min_positive_iou,
        ignore_iof_threshold=s.ignore_iof_threshold,
    )
    samples = sample_labels(
        key,
        assignment.labels,
        num_samples=min(s.rpn_num_samples, anchors.shape[0]),
        positive_fraction=s.rpn_positive_fraction,
    )
    matched = boxes[assignment.index[samples.index]]
    deltas = box_coder.encode(anchors[samples.index], matched)
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    deltas = jnp.where(samples.positive[:, None], deltas, 0.0)
    return AnchorTargets(samples.index, samples.positive, samples.valid, deltas)


def rpn_losses(
    s: Settings,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    targets: AnchorTargets,
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both RPN losses, each summed and divided by the sampled anchors of the global batch.

    The reference counts at least one positive and one negative an image.
    """
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    negative = targets.valid & ~targets.positive
    num_samples = sum(
        jnp.sum(jnp.maximum(jnp.sum(drawn, axis=1), 1)) for drawn in (targets.positive, negative)
    )
    count = losses.global_count(num_samples, axis_name)
    objectness = losses.sigmoid_cross_entropy(logits, targets.positive)
    box = _box_loss(deltas, targets.deltas, s.rpn_beta)
    return {
        "rpn_class_loss": losses.masked_sum(objectness, targets.valid) / count,
        "rpn_box_loss": losses.masked_sum(box, targets.positive) / count,
    }


def region_targets(
    s: Settings,
    key: Key[Array, ""],
    proposals: Proposals,
    objects: tuple[Array, Array, Array, Array],
) -> RegionTargets:
    """Assigns and samples the proposals of one image and its ground truth.

    The ground truth comes last (first in the reference), so that the number of
    its slots does not change what is drawn of the proposals.
    """
    boxes, labels, valid, crowd = objects
    candidates = jnp.concatenate([jax.lax.stop_gradient(proposals.boxes), boxes])
    assignment = assign_by_iou(
        proposals.boxes,
        proposals.valid,
        boxes,
        valid,
        crowd,
        positive_iou=s.roi_positive_iou,
        negative_iou=s.roi_positive_iou,
        match_low_quality=False,
        ignore_iof_threshold=s.ignore_iof_threshold,
    )
    # Every object is a candidate of its own, whatever else overlaps it.
    verdicts = jnp.concatenate([assignment.labels, jnp.where(valid, POSITIVE, IGNORE)])
    slots = jnp.concatenate([assignment.index, jnp.arange(boxes.shape[0])])
    samples = sample_labels(
        key,
        verdicts,
        num_samples=min(s.roi_num_samples, candidates.shape[0]),
        positive_fraction=s.roi_positive_fraction,
    )
    rois = jnp.where(samples.valid[:, None], candidates[samples.index], 0.0)
    slot = slots[samples.index]
    deltas = box_coder.encode(rois, boxes[slot], stds=s.box_stds)
    return RegionTargets(
        rois,
        jnp.where(samples.positive, labels[slot], s.num_classes),
        samples.positive,
        samples.valid,
        jnp.where(samples.positive[:, None], deltas, 0.0),
    )


def box_losses(
    s: Settings,
    logits: Float[Array, "B S K1"],
    deltas: Float[Array, "B S k 4"],
    targets: RegionTargets,
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both losses of the regions, divided by all those sampled in the global batch; K1 is K + 1."""
    count = losses.global_count(jnp.sum(targets.valid), axis_name)
    classes = losses.softmax_cross_entropy(logits, targets.labels)
    own = jnp.where(targets.positive, targets.labels, 0) if not s.class_agnostic else 0
    own = jnp.broadcast_to(own, targets.labels.shape)
    deltas = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    box = _box_loss(deltas, targets.deltas, s.box_beta)
    return {
        "class_loss": losses.masked_sum(classes, targets.valid) / count,
        "box_loss": losses.masked_sum(box, targets.positive) / count,
    }


def detections(
    s: Settings,
    logits: Float[Array, "P K1"],
    deltas: Float[Array, "P k 4"],
    proposals: Proposals,
    size: Int[Array, "2"],
) -> Detections:
    """The final boxes of one image; K1 is K + 1."""
    scores = jax.nn.softmax(logits, axis=-1)[:, :-1]
    boxes = box_coder.decode(proposals.boxes[:, None], deltas, stds=s.box_stds, size=size)
    return nms_per_class(
        boxes,
        scores,
        proposals.valid,
        score_threshold=s.score_threshold,
        iou_threshold=s.nms_iou,
        max_detections=s.max_detections,
        max_candidates=s.max_candidates,
    )


def _normalize(s, images):
    normalize = partial(pixels.normalize, mean=s.pixel_mean, std=s.pixel_std)
    return jax.vmap(normalize)(images.pixels, images.sizes)


def _anchors(s, pyramid, sizes):
    """Anchors (N, 4), how many each level has, and which each image covers (B, N)."""
    feature_sizes = [level.shape[1:3] for level in pyramid]
    anchors = anchor_ops.pyramid_anchors(
        feature_sizes, STRIDES, scales=s.anchor_scales, ratios=s.anchor_ratios
    )
    num_base = len(s.anchor_scales) * len(s.anchor_ratios)
    valid = jax.vmap(
        lambda size: anchor_ops.pyramid_valid(
            feature_sizes, STRIDES, size, num_base=num_base, divisor=s.size_divisor
        )
    )(sizes)
    return jnp.asarray(anchors), [h * w * num_base for h, w in feature_sizes], valid


def _propose(s, logits, deltas, anchors, anchors_valid, sizes, level_sizes, *, train):
    propose = partial(
        generate_proposals,
        level_sizes=level_sizes,
        pre_nms=s.rpn_pre_nms if train else s.rpn_pre_nms_test,
        iou_threshold=s.rpn_nms_iou,
        num_proposals=s.num_proposals if train else s.num_proposals_test,
        min_size=s.min_proposal_size,
    )
    # Proposals are inputs of the second stage, not a path for its gradient.
    logits, deltas = jax.lax.stop_gradient((logits, deltas))
    return jax.vmap(propose, in_axes=(0, 0, None, 0, 0))(
        logits, deltas, anchors, anchors_valid, sizes
    )


def _pool(s, pyramid, boxes):
    pool = partial(
        pyramid_roi_align,
        strides=STRIDES[:NUM_ROI_LEVELS],
        finest_scale=s.finest_scale,
        output_size=s.roi_size,
        sampling_ratio=s.sampling_ratio,
        max_sampling=s.max_sampling,
    )
    # A few images at a time: the cells that all regions gather would fill the memory.
    return jax.lax.map(
        lambda image: pool(*image),
        (pyramid[:NUM_ROI_LEVELS], boxes),
        batch_size=min(IMAGES_POOLED_AT_ONCE, len(boxes)),
    )


def _box_loss(deltas, targets, beta):
    return losses.smooth_l1(deltas, targets, beta=beta) if beta > 0 else losses.l1(deltas, targets)
