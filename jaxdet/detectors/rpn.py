"""Region proposal network, alone or as the first stage of Faster R-CNN.

Features -> head -> anchors -> assign -> sample -> losses; then proposals. Alone
it is a detector of one class: whatever the data annotates, scored by objectness.

Reference: Ren et al., Faster R-CNN, sec. 3.1, arXiv:1506.01497; Lin et al., FPN,
sec. 4.1, arXiv:1612.03144; defaults and details are those of mmdetection 2.11.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdet.detectors import anchor_grid, features
from jaxdet.detectors.anchor_grid import Anchors
from jaxdet.models.rpn_head import RPNHead
from jaxdet.ops import losses
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.proposals import generate_proposals
from jaxdet.ops.sampling import pad_labels, sample_labels
from jaxdet.types import Batch, Detections, Detector, Images, Metrics, Objects, Proposals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(features.FeatureSettings):
    """Keyword arguments of `rpn`, with mmdetection's defaults, besides `FeatureSettings`.

    Attributes:
        anchor_scales: sides of the square anchors, in strides.
        anchor_ratios: height / width of the anchors.
        anchor_centre: where in a cell its anchors are centred, 0 to 1.
        allowed_border: pixels an anchor may leave the image by to train; -1 for any.
        count_touching: whether anchors that touch the right or bottom border are inside.
        ignore_iof_threshold: anchors and proposals inside crowd regions by more
            than this fraction are ignored; -1 for off.
        rpn_positive_iou: anchors of at least this overlap are positive.
        rpn_negative_iou: anchors of less than this overlap are negative.
        rpn_min_positive_iou: lowest overlap of an object's best anchors.
        rpn_reassign_low_quality: whether an object's best anchors learn that
            object; else the one that they overlap most themselves.
        rpn_num_samples: anchors an image that train.
        rpn_positive_fraction: largest share of positives among them.
        rpn_max_negatives_per_positive: caps the negatives; -1 for off.
        rpn_least_samples: so many positives, and negatives, an image counts as
            at least, where the losses are divided by them.
        rpn_positive_weight: of a positive's objectness loss; 0 or less is 1.
        rpn_softmax: whether the head scores background and object apart.
        rpn_class_weight: of the objectness loss in the total.
        rpn_box_loss: "l1" or "smooth_l1" of deltas, or "iou", "giou" or "diou" of boxes.
        rpn_beta: of smooth L1.
        rpn_box_normalizer: what the box loss is divided by, "samples" or "positives".
        rpn_box_weight: of the box loss in the total.
        rpn_pre_nms: anchors of each level that are decoded while Faster R-CNN trains.
        rpn_pre_nms_test: the same in prediction.
        rpn_nms_iou: proposals that overlap more than this are duplicates.
        num_proposals: proposals an image while Faster R-CNN trains.
        num_proposals_test: the same in prediction.
        min_proposal_size: shorter sides are dropped, in pixels of the canvas.
        min_size_of_original: whether those are pixels of the original image.
        filter_first: whether they are dropped before `rpn_pre_nms` counts.
        confusion: count predicted against wanted objectness of the sampled anchors.
    """

    anchor_scales: tuple[float, ...] = (8.0,)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_centre: float = 0.0
    allowed_border: float = -1.0
    count_touching: bool = False
    ignore_iof_threshold: float = -1.0
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3
    rpn_reassign_low_quality: bool = True
    rpn_num_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_max_negatives_per_positive: float = -1.0
    rpn_least_samples: int = 1
    rpn_positive_weight: float = -1.0
    rpn_softmax: bool = False
    rpn_class_weight: float = 1.0
    rpn_box_loss: str = "l1"
    rpn_beta: float = 1.0
    rpn_box_normalizer: str = "samples"
    rpn_box_weight: float = 1.0
    rpn_pre_nms: int = 2000
    rpn_pre_nms_test: int = 1000
    rpn_nms_iou: float = 0.7
    num_proposals: int = 1000
    num_proposals_test: int = 1000
    min_proposal_size: float = 0.0
    min_size_of_original: bool = False
    filter_first: bool = False
    confusion: bool = False

    @property
    def num_anchors(self) -> int:
        """Anchors of a cell."""
        return len(self.anchor_scales) * len(self.anchor_ratios)


class AnchorTargets(NamedTuple):
    """The anchors of one image that train, and what they learn."""

    index: Int[Array, " S"]
    positive: Bool[Array, " S"]
    valid: Bool[Array, " S"]
    boxes: Float[Array, "S 4"]  # Of the object, for positives.


class RPN(features.Network):
    """Backbone, neck and head; `settings` are those of `rpn`."""

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        super().setup()
        self.rpn_head = make_head(self.settings)

    def rpn(self, pyramid: tuple[Array, ...]) -> tuple[Array, Array]:
        """Objectness logits (B, N) and deltas (B, N, 4) of all anchors."""
        return self.rpn_head(pyramid)

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.rpn(self.features(x, train=False))


def rpn(**settings: Any) -> Detector:
    """A region proposal network as a detector of one class, label 0.

    Objects of all classes are learnt alike.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
    """
    s = Settings(**settings)
    init = partial(features.initialize, RPN(s))
    return Detector(init, partial(_loss, s), partial(_predict, s))


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, final=False, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del final  # Nothing in it changes while it trains.
    network = RPN(s, axis_name)
    keys = jax.vmap(partial(jax.random.fold_in, key))(batch.index)
    x = features.normalize(s, batch.images)
    pyramid, batch_stats = features.extract(network, variables, x, train=True)
    logits, deltas, anchors = forward(s, network, variables, pyramid, batch.images.sizes)
    targets = batch_targets(s, keys, anchors, batch)
    terms = rpn_losses(s, logits, deltas, anchors, targets, axis_name=axis_name)
    counts = rpn_counts(s, logits, targets)
    return sum(terms.values()), (Metrics(terms, counts), batch_stats)


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Proposals of every image as detections, best first, in canvas pixels."""
    network = RPN(s)
    x = features.normalize(s, images)
    pyramid, _ = features.extract(network, variables, x, train=False)
    logits, deltas, anchors = forward(s, network, variables, pyramid, images.sizes)
    found = propose(s, logits, deltas, anchors, images, train=False)
    labels = jnp.zeros(found.valid.shape, jnp.int32)
    return Detections(found.boxes, found.scores, labels, found.valid)


def make_head(s: Settings) -> RPNHead:
    """The head that the settings describe."""
    return RPNHead(
        num_anchors=s.num_anchors,
        channels=s.channels,
        softmax=s.rpn_softmax,
        dtype=jnp.dtype(s.dtype),
    )


def forward(
    s: Settings,
    network: nn.Module,
    variables: dict,
    pyramid: tuple[Array, ...],
    sizes: Int[Array, "B 2"],
) -> tuple[Float[Array, "B N"], Float[Array, "B N 4"], Anchors]:
    """Objectness logits and deltas of all anchors, and the anchors."""
    logits, deltas = network.apply(variables, pyramid, method="rpn")
    return logits, deltas, make_anchors(s, pyramid, sizes)


def make_anchors(s: Settings, pyramid: tuple[Array, ...], sizes: Int[Array, "B 2"]) -> Anchors:
    """The anchors that the settings describe."""
    return anchor_grid.make_anchors(
        pyramid,
        sizes,
        strides=s.strides,
        scales=s.anchor_scales,
        ratios=s.anchor_ratios,
        centre=s.anchor_centre,
        divisor=s.size_divisor,
        whole_cells=s.backbone == "vgg",
    )


def batch_targets(
    s: Settings, keys: Key[Array, " B"], anchors: Anchors, batch: Batch
) -> AnchorTargets:
    """`anchor_targets` of every image."""
    one = jax.vmap(partial(anchor_targets, s), in_axes=(0, None, 0, 0, 0))
    return one(keys, anchors.boxes, anchors.valid, batch.images.sizes, batch.objects)


def anchor_targets(
    s: Settings,
    key: Key[Array, ""],
    anchors: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: Objects,
) -> AnchorTargets:
    """Assigns and samples the anchors of one image."""
    assignment = anchor_grid.assign(
        anchors,
        anchors_valid,
        size,
        objects,
        allowed_border=s.allowed_border,
        count_touching=s.count_touching,
        positive_iou=s.rpn_positive_iou,
        negative_iou=s.rpn_negative_iou,
        min_positive_iou=s.rpn_min_positive_iou,
        reassign_low_quality=s.rpn_reassign_low_quality,
        ignore_iof_threshold=s.ignore_iof_threshold,
    )
    samples = sample_labels(
        key,
        pad_labels(assignment.labels, s.rpn_num_samples),
        num_samples=s.rpn_num_samples,
        positive_fraction=s.rpn_positive_fraction,
        max_negatives_per_positive=s.rpn_max_negatives_per_positive,
    )
    matched = objects.boxes[assignment.index[samples.index]]
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    matched = jnp.where(samples.positive[:, None], matched, 0.0)
    return AnchorTargets(samples.index, samples.positive, samples.valid, matched)


def rpn_losses(
    s: Settings,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    targets: AnchorTargets,
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both RPN losses, summed and divided by the sampled anchors of the global batch.

    The box loss may be divided by the positives instead, at least one in all.

    Raises:
        ValueError: if `rpn_box_normalizer` is unknown.
    """
    logits = jnp.take_along_axis(logits, targets.index, axis=1)
    deltas = jnp.take_along_axis(deltas, targets.index[..., None], axis=1)
    negative = targets.valid & ~targets.positive
    num_samples = sum(
        jnp.sum(jnp.maximum(jnp.sum(drawn, axis=1), s.rpn_least_samples))
        for drawn in (targets.positive, negative)
    )
    count = losses.global_count(num_samples, axis_name)
    box_count = _box_count(s, count, targets, axis_name)
    objectness = losses.sigmoid_cross_entropy(logits, targets.positive)
    weights = losses.sample_weights(
        targets.positive, targets.valid, positive_weight=s.rpn_positive_weight
    )
    box = box_regression(
        anchors.boxes[targets.index],
        deltas,
        targets.boxes,
        kind=s.rpn_box_loss,
        beta=s.rpn_beta,
        max_ratio=s.largest_ratio,
    )
    class_sum = losses.masked_sum(objectness * weights, targets.valid)
    return {
        "rpn_class_loss": s.rpn_class_weight * class_sum / count,
        "rpn_box_loss": s.rpn_box_weight * losses.masked_sum(box, targets.positive) / box_count,
    }


def _box_count(s, samples, targets, axis_name):
    if s.rpn_box_normalizer == "samples":
        return samples
    if s.rpn_box_normalizer == "positives":
        return losses.global_count(jnp.sum(targets.positive), axis_name)
    raise ValueError(
        f"rpn_box_normalizer must be 'samples' or 'positives', found {s.rpn_box_normalizer!r}"
    )


def rpn_counts(
    s: Settings, logits: Float[Array, "B N"], targets: AnchorTargets
) -> dict[str, Array]:
    """What is counted in training: positives, and where asked the confusion matrix.

    Its rows are the truth and its columns what the logit's sign says; object, then background.
    """
    counts = {"rpn_positives": jnp.sum(targets.positive)}
    if s.confusion:
        says_object = jnp.take_along_axis(logits, targets.index, axis=1) > 0
        counts["rpn_confusion"] = losses.confusion_matrix(
            (~targets.positive).astype(jnp.int32).ravel(),
            (~says_object).astype(jnp.int32).ravel(),
            targets.valid.ravel(),
            num_classes=2,
        )
    return counts


def propose(
    s: Settings,
    logits: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    images: Images,
    *,
    train: bool,
) -> Proposals:
    """The best boxes of every image; no gradient flows through them."""
    one = partial(
        generate_proposals,
        level_sizes=anchors.level_sizes,
        pre_nms=s.rpn_pre_nms if train else s.rpn_pre_nms_test,
        iou_threshold=s.rpn_nms_iou,
        num_proposals=s.num_proposals if train else s.num_proposals_test,
        filter_first=s.filter_first,
        max_ratio=s.largest_ratio,
    )
    min_size = jnp.full(images.scales.shape, s.min_proposal_size)
    if s.min_size_of_original:
        min_size *= images.scales
    # Proposals are inputs of the second stage, not a path for its gradient.
    scores, deltas = jax.lax.stop_gradient((jax.nn.sigmoid(logits), deltas))
    return jax.vmap(
        lambda scores, deltas, valid, size, min_size: one(
            scores, deltas, anchors.boxes, valid, size, min_size=min_size
        )
    )(scores, deltas, anchors.valid, images.sizes, min_size)
