"""YOLOX: every grid point predicts one box; SimOTA chooses the points that learn an object.

Features -> decoupled head -> grid points -> decode -> SimOTA -> box, objectness
and class loss; then boxes -> suppression.

Reference: Ge et al., YOLOX, arXiv:2107.08430; defaults are those of YOLOX-L.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.detectors import features
from jaxdet.models.cspdarknet import STRIDES, CSPDarknet
from jaxdet.models.pafpn import PAFPN
from jaxdet.models.yolox_head import YOLOXHead
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses
from jaxdet.ops.anchors import GridPoints
from jaxdet.ops.box_coder import decode_grid, encode_grid
from jaxdet.ops.box_losses import giou_loss, iou_loss
from jaxdet.ops.nms import nms_best_class
from jaxdet.ops.simota import assign_simota
from jaxdet.types import Batch, Detections, Detector, Images, Metrics, Objects

BOX_LOSSES = ("iou", "giou")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(features.ImageSettings):
    """Keyword arguments of `yolox`, besides `ImageSettings`.

    Pixels go in as 0..255, RGB, with 114 beside the images. The weights of YOLOX
    since 0.1.1 read the same in BGR and are turned when they are loaded.

    Attributes:
        depth: multiple of the number of blocks: .33 for nano, tiny and s, .67
            for m, 1 for l, 1.33 for x.
        width: multiple of the channels: .25, .375, .5, .75, 1 and 1.25.
        depthwise: split 3x3 convolutions, as nano does.
        activation: "silu", "relu" or "leaky_relu".
        norm: "batch", "sync", "group" or "frozen", which needs pretrained weights.
        centre_radius: a point this near to an object's centre, in strides, may learn it.
        inside_boxes: so may those in its box, but at a penalty unless both hold.
        penalty: of a point that is not both.
        iou_cost: weight of -log(IoU) beside the class in the cost of a point.
        num_candidates: points that an object learns by, at most.
        box_loss: "iou", which is 1 - IoU^2, or "giou".
        box_weight: of the box loss in the total.
        objectness_weight: of the objectness loss.
        class_weight: of the class loss.
        l1_weight: of the L1 loss of the raw boxes, which a run's final steps have.
        score_threshold: detections score at least this, objectness times class.
        nms_iou: detections of a class that overlap more than this are duplicates.
        class_agnostic: detections of all classes suppress each other.
        max_detections: detections an image.
        max_candidates: boxes an image that suppression looks at, by their best class;
            the reference looks at all.

    Raises:
        ValueError: if `box_loss` is unknown.
    """

    pixel_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    pixel_padding: float | None = 114.0
    depth: float = 1.0
    width: float = 1.0
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"
    centre_radius: float = 2.5
    inside_boxes: bool = True
    penalty: float = 1e5
    iou_cost: float = 3.0
    num_candidates: int = 10
    box_loss: str = "iou"
    box_weight: float = 5.0
    objectness_weight: float = 1.0
    class_weight: float = 1.0
    l1_weight: float = 1.0
    score_threshold: float = 0.01
    nms_iou: float = 0.65
    class_agnostic: bool = False
    max_detections: int = 300
    max_candidates: int = 1000

    def __post_init__(self):
        """Checks what nothing else would name."""
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(
                f"box_loss must be one of {', '.join(BOX_LOSSES)}; found {self.box_loss!r}"
            )


class Outputs(NamedTuple):
    """What the network says at every grid point, and where these are.

    Attributes:
        logits: of each class.
        offsets: raw boxes; `box_coder.decode_grid` makes pixels of them.
        objectness: logits.
        points: centres and strides, finest level first, then y, then x.
    """

    logits: Float[Array, "B N K"]
    offsets: Float[Array, "B N 4"]
    objectness: Float[Array, "B N"]
    points: GridPoints


class PointTargets(NamedTuple):
    """What every grid point of one image learns."""

    positive: Bool[Array, " N"]  # Learns an object; the others that there is none.
    boxes: Float[Array, "N 4"]  # Of the object; zeros where there is none, as below.
    labels: Int[Array, " N"]
    overlaps: Float[Array, " N"]  # IoU of the predicted box, which the class is to score.


class YOLOX(nn.Module):
    """Backbone, neck and head; `settings` are those of `yolox`."""

    settings: Settings
    axis_name: str | None = None

    def setup(self):
        """Names the parts; the names are checkpoint keys."""
        s = self.settings
        common = dict(
            depthwise=s.depthwise,
            activation=s.activation,
            norm=s.norm,
            axis_name=self.axis_name,
            dtype=jnp.dtype(s.dtype),
        )
        self.backbone = CSPDarknet(depth=s.depth, width=s.width, **common)
        self.neck = PAFPN(depth=s.depth, **common)
        self.head = YOLOXHead(num_classes=s.num_classes, width=s.width, **common)

    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> tuple[Array, ...]:
        """Class logits, offsets and objectness of all grid points."""
        return self.head(self.neck(self.backbone(x, train=train), train=train), train=train)


def yolox(**settings: Any) -> Detector:
    """YOLOX, of any size.

    Args:
        **settings: `num_classes`, and any other attribute of `Settings`.

    Raises:
        TypeError: if a setting is unknown.
    """
    s = Settings(**settings)
    init = partial(features.initialize, YOLOX(s))
    return Detector(init, partial(_loss, s), partial(_predict, s))


def raw_outputs(s: Settings, variables: dict, images: Images) -> Outputs:
    """What prediction decides on: for export, or for a suppression of one's own."""
    return _forward(s, variables, images, train=False)[0]


def decode(outputs: Outputs) -> tuple[Float[Array, "B N 4"], Float[Array, "B N K"]]:
    """The boxes of all grid points, in pixels, and the scores of each class in them.

    A score is the chance of an object times that of the class.
    """
    boxes = jax.vmap(partial(decode_grid, outputs.points))(outputs.offsets)
    objectness, classes = map(jax.nn.sigmoid, (outputs.objectness, outputs.logits))
    return boxes, objectness[..., None] * classes


def _loss(
    s: Settings, variables: dict, batch: Batch, key, *, final=False, axis_name: str | None = None
) -> tuple[Array, tuple[Metrics, dict]]:
    """Total loss of the batch; the mean over devices is that of the global batch."""
    del key  # Nothing is drawn.
    outputs, batch_stats = _forward(s, variables, batch.images, train=True, axis_name=axis_name)
    targets = jax.vmap(partial(point_targets, s, outputs.points))(*outputs[:3], batch.objects)
    terms = point_losses(s, outputs, targets, final=final, axis_name=axis_name)
    counts = {"positives": jnp.sum(targets.positive), "objects": jnp.sum(batch.valid)}
    # Of the global batch, as the mean over devices; above 1 if objects learn by several points.
    ratio = counts["positives"] / losses.global_count(counts["objects"], axis_name)
    means = {**terms, "positives_per_object": ratio}
    return sum(terms.values()), (Metrics(means, counts), batch_stats)


def _predict(s: Settings, variables: dict, images: Images) -> Detections:
    """Detections of every image, best first, in canvas pixels."""
    boxes, scores = decode(raw_outputs(s, variables, images))
    return jax.vmap(partial(detections, s))(boxes, scores, images.sizes)


def _forward(
    s: Settings, variables: dict, images: Images, *, train: bool, axis_name: str | None = None
) -> tuple[Outputs, dict]:
    """The network's outputs, and its running statistics after them."""
    x = features.normalize(s, images)
    raw, batch_stats = features.extract(
        YOLOX(s, axis_name), variables, x, train=train, method="__call__"
    )
    height, width = x.shape[1:3]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return Outputs(*raw, anchor_ops.grid_points(sizes, STRIDES)), batch_stats


def point_targets(
    s: Settings,
    points: GridPoints,
    logits: Float[Array, "N K"],
    offsets: Float[Array, "N 4"],
    objectness: Float[Array, " N"],
    objects: Objects,
) -> PointTargets:
    """Assigns the grid points of one image, by what they predict; crowd regions play no part."""
    found = assign_simota(
        points,
        decode_grid(points, offsets),
        logits,
        objectness,
        objects.boxes,
        objects.labels,
        objects.valid,
        centre_radius=s.centre_radius,
        inside_boxes=s.inside_boxes,
        penalty=s.penalty,
        iou_weight=s.iou_cost,
        num_candidates=s.num_candidates,
    )
    # The slots that no point learns may hold anything.
    boxes = jnp.where(found.positive[:, None], objects.boxes[found.index], 0.0)
    labels = jnp.where(found.positive, objects.labels[found.index], 0)
    return PointTargets(found.positive, boxes, labels, found.overlaps)


def point_losses(
    s: Settings,
    outputs: Outputs,
    targets: PointTargets,
    *,
    final: Bool[Array, ""] | bool = False,
    axis_name: str | None = None,
) -> dict[str, Float[Array, ""]]:
    """The loss terms of a batch, each divided by the positives of the global batch.

    Args:
        s: the detector's settings.
        outputs: of the network.
        targets: of every image.
        final: whether the L1 loss of the raw boxes counts; the Python value False
            leaves it out.
        axis_name: the mapped axis of devices.
    """
    positive = targets.positive
    count = losses.global_count(jnp.sum(positive), axis_name)
    boxes = jax.vmap(partial(decode_grid, outputs.points))(outputs.offsets)
    boxes = jnp.where(positive[..., None], boxes, 0.0)
    box = (
        giou_loss(boxes, targets.boxes)
        if s.box_loss == "giou"
        else iou_loss(boxes, targets.boxes, form="square")
    )
    classes = jax.nn.one_hot(targets.labels, s.num_classes) * targets.overlaps[..., None]
    class_loss = losses.sigmoid_cross_entropy(outputs.logits, classes)
    terms = {
        "box_loss": s.box_weight * losses.masked_sum(box, positive),
        "objectness_loss": s.objectness_weight
        * jnp.sum(losses.sigmoid_cross_entropy(outputs.objectness, positive)),
        "class_loss": s.class_weight * losses.masked_sum(class_loss, positive),
    }
    if final is not False:
        wanted = jax.vmap(partial(encode_grid, outputs.points))(targets.boxes)
        l1 = losses.masked_sum(losses.l1(outputs.offsets, wanted), positive)
        terms["l1_loss"] = jnp.where(final, s.l1_weight, 0.0) * l1
    return {name: term / count for name, term in terms.items()}


def detections(
    s: Settings, boxes: Float[Array, "N 4"], scores: Float[Array, "N K"], size: Int[Array, "2"]
) -> Detections:
    """The final boxes of one image; they are clipped to it after suppression."""
    found = nms_best_class(
        boxes,
        scores,
        jnp.ones(len(boxes), bool),
        score_threshold=s.score_threshold,
        iou_threshold=s.nms_iou,
        max_detections=s.max_detections,
        max_candidates=s.max_candidates,
        class_agnostic=s.class_agnostic,
    )
    return found._replace(boxes=box_ops.clip(found.boxes, size))
