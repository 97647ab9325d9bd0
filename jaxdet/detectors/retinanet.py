"""RetinaNet on a ResNet-FPN: every anchor is classified, none is sampled.

Features -> towers -> anchors -> assign -> focal and box loss; then, of each
level, the best anchors -> boxes -> suppression.

Reference: Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002;
defaults and details are those of mmdetection 2.11.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.detectors import anchor_grid, features
from jaxdet.detectors.anchor_grid import Anchors
from jaxdet.models.retina_head import RetinaHead
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import box_coder, losses
from jaxdet.ops.assignment import IGNORE, POSITIVE
from jaxdet.ops.box_losses import box_regression
from jaxdet.ops.checks import check_at_least
from jaxdet.ops.nms import nms_per_class
from jaxdet.ops.proposals import best_of_levels
from jaxdet.types import Batch, Detections, Detector, Images, Metrics, Objects

# P3 to P5 are the backbone's, P6 and P7 convolutions on top of C5.
STRIDES = (8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(features.FeatureSettings):
    """Keyword arguments of `retinanet`, with mmdetection's defaults, besides `FeatureSettings`.

    Attributes:
        octave_base_scale: side of the smallest square anchor, in strides.
        scales_per_octave: anchors between one side and its double.
        anchor_ratios: height / width of the anchors.
        allowed_border: pixels an anchor may leave the image by to train; -1 for any.
        ignore_iof_threshold: anchors inside crowd regions by more than this
            fraction are ignored; -1 for off.
        positive_iou: anchors of at least this overlap are positive.
        negative_iou: anchors of less than this overlap are negative; between both, ignored.
        min_positive_iou: lowest overlap of an object's best anchors, which are
            positive, too; with 0, any that overlap it at all.
        tower_convs: convolutions of each tower.
        focal_alpha: weight of positives in the focal loss, 1 - this of negatives.
        focal_gamma: power by which easy anchors are discounted.
        class_weight: of the focal loss in the total.
        box_loss: "l1" or "smooth_l1" of deltas, or "iou", "giou" or "diou" of boxes.
        box_beta: of smooth L1.
        box_weight: of the box loss in the total.
        pre_nms: anchors of each level that are decoded in prediction, by their best class.
        score_threshold: detections score more than this.
        nms_iou: detections of a class that overlap more than this are duplicates.
        max_detections: detections an image.
        max_candidates: pairs of box and class an image that suppression looks at.
    """

    octave_base_scale: float = 4.0
    scales_per_octave: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    allowed_border: float = -1.0
    ignore_iof_threshold: float = -1.0
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    min_positive_iou: float = 0.0
    tower_convs: int = 4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    class_weight: float = 1.0
    box_loss: str = "l1"
    box_beta: float = 1.0
    box_weight: float = 1.0
    pre_nms: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    max_candidates: int = 2000

    def __post_init__(self):
        """Checks what nothing else would name."""
        super().__post_init__()
        check_at_least(0, tower_convs=self.tower_convs)
        if self.backbone != "resnet":
            raise ValueError(f"backbone of RetinaNet must be 'resnet', found {self.backbone!r}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell of each map, finest first."""
        return STRIDES

    @property
    def scales(self) -> tuple[float, ...]:
        """Sides of the square anchors, in strides."""
        return anchor_ops.octave_scales(self.octave_base_scale, self.scales_per_octave)


class DenseTargets(NamedTuple):
    """What every anchor of one image learns; label K is no object."""

    labels: Int[Array, " N"]
    positive: Bool[Array, " N"]
    valid: Bool[Array, " N"]
    boxes: Float[Array, "N 4"]  # Of the object, for positives.


class RetinaNet(features.Network):
    """Backbone, neck and head; `settings` are those of `retinanet`."""

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        s = self.settings
        self.backbone = features.make_backbone(s, self.axis_name)
        self.neck = features.make_neck(s, self.num_levels, start_level=1, extra="on_input")
        self.retina_head = RetinaHead(
            num_classes=s.num_classes,
            num_anchors=len(s.scales) * len(s.anchor_ratios),
            channels=s.fpn_channels,
            num_convs=s.tower_convs,
            dtype=jnp.dtype(s.dtype),
        )

    def head(self, pyramid: tuple[Array, ...]) -> tuple[Array, Array]:
        """Class logits (B, N, K) and deltas (B, N, 4) of all anchors."""
        return self.retina_head(pyramid)

    def __call__(self, x: Float[Array, "B H W 3"]) -> None:
        """Touches every parameter, for `init`."""
        self.head(self.features(x, train=False))


def retinanet(**settings: Any) -> Detector:
    """RetinaNet with a ResNet-FPN backbone.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
    """
    s = Settings(**settings)
    init = partial(features.initialize, RetinaNet(s))
    return Detector(init, partial(_loss, s), partial(_predict, s))


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, final=False, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del key, final  # Nothing is drawn, nothing changes while it trains.
    network = RetinaNet(s, axis_name)
    x = features.normalize(s, batch.images)
    pyramid, batch_stats = features.extract(network, variables, x, train=True)
    logits, deltas = network.apply(variables, pyramid, method="head")
    anchors = make_anchors(s, pyramid, batch.images.sizes)
    targets = jax.vmap(partial(anchor_targets, s), in_axes=(None, 0, 0, 0))(
        anchors.boxes, anchors.valid, batch.images.sizes, batch.objects
    )
    terms = anchor_losses(s, logits, deltas, anchors, targets, axis_name=axis_name)
    counts = {"positives": jnp.sum(targets.positive)}
    return sum(terms.values()), (Metrics(terms, counts), batch_stats)


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Detections of every image, best first, in canvas pixels."""
    network = RetinaNet(s)
    x = features.normalize(s, images)
    pyramid, _ = features.extract(network, variables, x, train=False)
    logits, deltas = network.apply(variables, pyramid, method="head")
    anchors = make_anchors(s, pyramid, images.sizes)
    one = partial(detections, s, anchors.boxes, level_sizes=anchors.level_sizes)
    return jax.vmap(one)(logits, deltas, anchors.valid, images.sizes)


def make_anchors(s: Settings, pyramid: tuple[Array, ...], sizes: Int[Array, "B 2"]) -> Anchors:
    """The anchors that the settings describe."""
    return anchor_grid.make_anchors(
        pyramid,
        sizes,
        strides=s.strides,
        scales=s.scales,
        ratios=s.anchor_ratios,
        divisor=s.size_divisor,
    )


def anchor_targets(
    s: Settings,
    anchors: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: Objects,
) -> DenseTargets:
    """Assigns all anchors of one image."""
    assignment = anchor_grid.assign(
        anchors,
        anchors_valid,
        size,
        objects,
        allowed_border=s.allowed_border,
        positive_iou=s.positive_iou,
        negative_iou=s.negative_iou,
        min_positive_iou=s.min_positive_iou,
        ignore_iof_threshold=s.ignore_iof_threshold,
    )
    positive = assignment.labels == POSITIVE
    # Padded slots may hold anything; zero them so that no NaN meets a gradient.
    matched = jnp.where(positive[:, None], objects.boxes[assignment.index], 0.0)
    labels = jnp.where(positive, objects.labels[assignment.index], s.num_classes)
    return DenseTargets(labels, positive, assignment.labels != IGNORE, matched)


def anchor_losses(
    s: Settings,
    logits: Float[Array, "B N K"],
    deltas: Float[Array, "B N 4"],
    anchors: Anchors,
    targets: DenseTargets,
    *,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both losses, each summed and divided by the positives of the global batch.

    The reference counts at least one positive an image.
    """
    num_positives = jnp.sum(jnp.maximum(jnp.sum(targets.positive, axis=1), 1))
    count = losses.global_count(num_positives, axis_name)
    # No object is no class: a row of zeros.
    one_hot = jax.nn.one_hot(targets.labels, s.num_classes)
    focal = losses.sigmoid_focal(logits, one_hot, alpha=s.focal_alpha, gamma=s.focal_gamma)
    all_anchors = jnp.broadcast_to(anchors.boxes, targets.boxes.shape)
    box = box_regression(
        all_anchors,
        deltas,
        targets.boxes,
        kind=s.box_loss,
        beta=s.box_beta,
        max_ratio=s.largest_ratio,
    )
    return {
        "class_loss": s.class_weight * losses.masked_sum(focal, targets.valid) / count,
        "box_loss": s.box_weight * losses.masked_sum(box, targets.positive) / count,
    }


def detections(
    s: Settings,
    anchors: Float[Array, "N 4"],
    logits: Float[Array, "N K"],
    deltas: Float[Array, "N 4"],
    anchors_valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    *,
    level_sizes: tuple[int, ...],
) -> Detections:
    """The final boxes of one image."""
    scores = jax.nn.sigmoid(logits)
    ranked = jnp.where(anchors_valid, jnp.max(scores, axis=-1), -jnp.inf)
    best, index = (x.ravel() for x in best_of_levels(ranked, level_sizes, s.pre_nms))
    boxes = box_coder.decode(anchors[index], deltas[index], max_ratio=s.largest_ratio, size=size)
    return nms_per_class(
        boxes[:, None],
        scores[index],
        best > -jnp.inf,
        score_threshold=s.score_threshold,
        iou_threshold=s.nms_iou,
        max_detections=s.max_detections,
        max_candidates=s.max_candidates,
    )
