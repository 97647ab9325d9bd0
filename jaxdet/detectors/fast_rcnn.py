"""Fast R-CNN, alone on given proposals or as the second stage of Faster R-CNN.

Features and proposals -> assign -> sample -> pool -> box head -> losses; then
detections.

Reference: Girshick, Fast R-CNN, arXiv:1504.08083; Lin et al., FPN, sec. 4.2,
arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdet.detectors import features
from jaxdet.models.box_head import BoxHead
from jaxdet.ops import box_coder, losses
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.assignment import append_ground_truth, assign_by_iou
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.checks import check_at_least
from jaxdet.ops.nms import nms_per_class
from jaxdet.ops.roi_max_pooling import pyramid_roi_pool
from jaxdet.ops.roi_pooling import pyramid_roi_align
from jaxdet.ops.sampling import pad_labels, sample_labels
from jaxdet.types import (
    Batch,
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

# 512 regions of 4 images gather 4 GB at 256 channels and the default `max_sampling`.
IMAGES_POOLED_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(features.FeatureSettings):
    """Keyword arguments of `fast_rcnn`, with mmdetection's defaults, besides `FeatureSettings`.

    Attributes:
        ignore_iof_threshold: proposals inside crowd regions by more than this
            fraction are ignored; -1 for off.
        roi_positive_iou: proposals of at least this overlap are positive.
        roi_negative_iou: those with an overlap in [low, high) are background.
        roi_add_ground_truth: whether objects are regions themselves.
        roi_num_samples: regions an image that train.
        roi_positive_fraction: largest share of positives among them.
        roi_max_negatives_per_positive: caps the negatives; -1 for off.
        roi_positive_weight: of a positive's class loss; 0 or less is 1.
        roi_pooling: "align" or "pool".
        roi_size: bins an axis.
        roi_scale: regions are pooled this much larger than they are, about their centres.
        sampling_ratio: samples a bin and axis; 0 adapts to the region.
        max_sampling: cap on adaptive samples.
        finest_scale: regions of less than twice this side use the finest level.
        hidden: units of the fully connected layers.
        head_convs: of the box head: (shared, class branch, box branch).
        head_fcs: fully connected layers behind them, likewise.
        head_channels: of the convolutions.
        head_norm: "none", or "group" behind every convolution.
        head_average_pool: replace a map by its mean where the convolutions end.
        head_dropout: share of the fully connected layers' outputs dropped in training.
        class_agnostic: one box for all classes.
        box_means: of the region deltas.
        box_stds: of the region deltas.
        class_weight: of the class loss in the total.
        box_loss: "l1" or "smooth_l1" of deltas, or "iou", "giou" or "diou" of boxes.
        box_beta: of smooth L1.
        box_weight: of the box loss in the total.
        confusion: count predicted against true classes of the sampled regions.
        score_threshold: detections score more than this.
        nms_iou: detections of a class that overlap more than this are duplicates.
        max_detections: detections an image.
        max_candidates: pairs of box and class an image that suppression looks at.
    """

    ignore_iof_threshold: float = -1.0
    roi_positive_iou: float = 0.5
    roi_negative_iou: tuple[float, float] = (0.0, 0.5)
    roi_add_ground_truth: bool = True
    roi_num_samples: int = 512
    roi_positive_fraction: float = 0.25
    roi_max_negatives_per_positive: float = -1.0
    roi_positive_weight: float = -1.0
    roi_pooling: str = "align"
    roi_size: int = 7
    roi_scale: float = 1.0
    sampling_ratio: int = 0
    max_sampling: int = 6
    finest_scale: float = 56.0
    hidden: int = 1024
    head_convs: tuple[int, ...] = (0, 0, 0)
    head_fcs: tuple[int, ...] = (2, 0, 0)
    head_channels: int = 256
    head_norm: str = "none"
    head_average_pool: bool = False
    head_dropout: float = 0.0
    class_agnostic: bool = False
    box_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    box_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    class_weight: float = 1.0
    box_loss: str = "l1"
    box_beta: float = 1.0
    box_weight: float = 1.0
    confusion: bool = False
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    max_candidates: int = 2000

    def __post_init__(self):
        """Checks what nothing else would name."""
        super().__post_init__()
        check_at_least(1, hidden=self.hidden, roi_size=self.roi_size)
        for name in ("head_convs", "head_fcs"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} wants three numbers (shared, class branch, box branch), "
                    f"found {getattr(self, name)}"
                )


class RegionTargets(NamedTuple):
    """The regions of one image that train, and what they learn; label K is background."""

    rois: Float[Array, "S 4"]
    labels: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    boxes: Float[Array, "S 4"]  # Of the object, for positives.


class FastRCNN(features.Network):
    """Backbone, neck and box head; `settings` are those of `fast_rcnn`."""

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        super().setup()
        self.box_head = make_head(self.settings)

    @property
    def num_levels(self) -> int:
        """Maps of the pyramid."""
        return min(len(self.settings.strides), MOST_LEVELS)

    def roi(self, regions: Float[Array, "B S h w C"], keys=None) -> tuple[Array, Array]:
        """Class logits (B, S, K + 1) and deltas (B, S, K or 1, 4) of pooled regions."""
        return self.box_head(regions, keys)

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.features(x, train=False)
        self.roi(blank_regions(self.settings))


def fast_rcnn(**settings: Any) -> Detector:
    """Fast R-CNN on the proposals that come with the images.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
        UserError: in `loss` and `predict`, if the images have no proposals.
    """
    s = Settings(**settings)
    init = partial(features.initialize, FastRCNN(s))
    return Detector(init, partial(_loss, s), partial(_predict, s))


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, final=False, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del final  # Nothing in it changes while it trains.
    network = FastRCNN(s, axis_name)
    keys = jax.vmap(partial(jax.random.fold_in, key))(batch.index)
    proposals = _given_proposals(batch.images)
    x = features.normalize(s, batch.images)
    pyramid, batch_stats = features.extract(network, variables, x, train=True)
    terms, metrics = region_losses(
        s, network, variables, pyramid, keys, proposals, batch.objects, axis_name=axis_name
    )
    return sum(terms.values()), (metrics, batch_stats)


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Detections of every image, best first, in canvas pixels."""
    network = FastRCNN(s)
    x = features.normalize(s, images)
    pyramid, _ = features.extract(network, variables, x, train=False)
    return detect(s, network, variables, pyramid, _given_proposals(images), images.sizes)


def make_head(s: Settings) -> BoxHead:
    """The head that the settings describe."""
    shared_convs, class_convs, box_convs = s.head_convs
    shared_fcs, class_fcs, box_fcs = s.head_fcs
    return BoxHead(
        num_classes=s.num_classes,
        hidden=s.hidden,
        shared_convs=shared_convs,
        shared_fcs=shared_fcs,
        class_convs=class_convs,
        class_fcs=class_fcs,
        box_convs=box_convs,
        box_fcs=box_fcs,
        conv_channels=s.head_channels,
        norm=s.head_norm,
        average_pool=s.head_average_pool,
        dropout=s.head_dropout,
        class_agnostic=s.class_agnostic,
        dtype=jnp.dtype(s.dtype),
    )


def blank_regions(s: Settings) -> Float[Array, "1 1 h w C"]:
    """One pooled region, which shows the head its sizes."""
    return jnp.zeros((1, 1, s.roi_size, s.roi_size, s.channels))


def region_losses(
    s: Settings,
    network: nn.Module,
    variables: dict,
    pyramid: tuple[Array, ...],
    keys: Key[Array, " B"],
    proposals: Proposals,
    objects: Objects,
    *,
    axis_name: str | None = None,
) -> tuple[dict[str, Float[Array, ""]], Metrics]:
    """The losses of the second stage by name, and its metrics with them."""
    targets = jax.vmap(partial(region_targets, s))(keys, proposals, objects)
    pooled = pool(s, pyramid, targets.rois)
    logits, deltas = network.apply(variables, pooled, keys, method="roi")
    terms = box_losses(s, logits, deltas, targets, axis_name=axis_name)
    hits = losses.masked_sum(jnp.argmax(logits, axis=-1) == targets.labels, targets.valid)
    accuracy = hits / losses.global_count(jnp.sum(targets.valid), axis_name)
    counts = {
        "roi_positives": jnp.sum(targets.positive),
        "proposals": jnp.sum(proposals.valid),
    }
    if s.confusion:  # Rows are the truth, columns the prediction; background last.
        counts["roi_confusion"] = losses.confusion_matrix(
            targets.labels.ravel(),
            jnp.argmax(logits, axis=-1).ravel(),
            targets.valid.ravel(),
            num_classes=s.num_classes + 1,
        )
    return terms, Metrics({**terms, "accuracy": accuracy}, counts)


def region_targets(
    s: Settings, key: Key[Array, ""], proposals: Proposals, objects: Objects
) -> RegionTargets:
    """Assigns and samples the proposals of one image, and its ground truth among them."""
    candidates = jax.lax.stop_gradient(proposals.boxes)
    assignment = assign_by_iou(
        candidates,
        proposals.valid,
        objects.boxes,
        objects.valid,
        objects.crowd,
        positive_iou=s.roi_positive_iou,
        negative_iou=s.roi_negative_iou,
        match_low_quality=False,
        ignore_iof_threshold=s.ignore_iof_threshold,
    )
    if s.roi_add_ground_truth:
        candidates, assignment = append_ground_truth(
            candidates, assignment, objects.boxes, objects.valid
        )
    samples = sample_labels(
        key,
        pad_labels(assignment.labels, s.roi_num_samples),
        num_samples=s.roi_num_samples,
        positive_fraction=s.roi_positive_fraction,
        max_negatives_per_positive=s.roi_max_negatives_per_positive,
    )
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    rois = jnp.where(samples.valid[:, None], candidates[samples.index], 0.0)
    slot = assignment.index[samples.index]
    return RegionTargets(
        rois,
        jnp.where(samples.positive, objects.labels[slot], s.num_classes),
        samples.positive,
        samples.valid,
        jnp.where(samples.positive[:, None], objects.boxes[slot], 0.0),
    )


def pool(
    s: Settings, pyramid: tuple[Array, ...], rois: Float[Array, "B S 4"]
) -> Float[Array, "B S h w C"]:
    """The features of every region, on a grid of `roi_size` bins.

    Maps end where the canvas ends, as in mmdetection, not where the image does:
    bins at the border of a smaller image read the padding beside it.

    Raises:
        ValueError: if `roi_pooling` is unknown.
    """
    strides = s.strides[:MOST_LEVELS]
    common = dict(strides=strides, finest_scale=s.finest_scale, output_size=s.roi_size)
    sampling = dict(sampling_ratio=s.sampling_ratio, max_sampling=s.max_sampling)
    methods = {
        "align": partial(pyramid_roi_align, **common, **sampling),
        "pool": partial(pyramid_roi_pool, **common),
    }
    if s.roi_pooling not in methods:
        raise ValueError(f"roi_pooling must be 'align' or 'pool', found {s.roi_pooling!r}")
    if s.roi_scale != 1:
        rois = box_ops.rescale(rois, s.roi_scale)
    # A few images at a time: the cells that all regions gather would fill the memory.
    return jax.lax.map(
        lambda image: methods[s.roi_pooling](*image),
        (pyramid[: len(strides)], rois),
        batch_size=min(IMAGES_POOLED_AT_ONCE, len(rois)),
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
    weights = losses.sample_weights(
        targets.positive, targets.valid, positive_weight=s.roi_positive_weight
    )
    own = jnp.where(targets.positive, targets.labels, 0) if not s.class_agnostic else 0
    own = jnp.broadcast_to(own, targets.labels.shape)
    deltas = jnp.take_along_axis(deltas, own[..., None, None], axis=2)[:, :, 0]
    box = box_regression(
        targets.rois,
        deltas,
        targets.boxes,
        kind=s.box_loss,
        beta=s.box_beta,
        means=s.box_means,
        stds=s.box_stds,
        max_ratio=s.largest_ratio,
    )
    class_sum = losses.masked_sum(classes * weights, targets.valid)
    return {
        "class_loss": s.class_weight * class_sum / count,
        "box_loss": s.box_weight * losses.masked_sum(box, targets.positive) / count,
    }


def detect(
    s: Settings,
    network: nn.Module,
    variables: dict,
    pyramid: tuple[Array, ...],
    proposals: Proposals,
    sizes: Int[Array, "B 2"],
) -> Detections:
    """Detections of every image from its proposals."""
    pooled = pool(s, pyramid, proposals.boxes)
    logits, deltas = network.apply(variables, pooled, method="roi")
    return jax.vmap(partial(detections, s))(logits, deltas, proposals, sizes)


def detections(
    s: Settings,
    logits: Float[Array, "P K1"],
    deltas: Float[Array, "P k 4"],
    proposals: Proposals,
    size: Int[Array, "2"],
) -> Detections:
    """The final boxes of one image; K1 is K + 1."""
    scores = jax.nn.softmax(logits, axis=-1)[:, :-1]
    boxes = box_coder.decode(
        proposals.boxes[:, None],
        deltas,
        means=s.box_means,
        stds=s.box_stds,
        max_ratio=s.largest_ratio,
        size=size,
    )
    return nms_per_class(
        boxes,
        scores,
        proposals.valid,
        score_threshold=s.score_threshold,
        iou_threshold=s.nms_iou,
        max_detections=s.max_detections,
        max_candidates=s.max_candidates,
    )


def _given_proposals(images: Images) -> Proposals:
    if images.proposals is None:
        raise UserError(
            "fast_rcnn needs proposals: name their file in data.proposals and set "
            "data.max_proposals, or take the detector faster_rcnn"
        )
    return images.proposals
