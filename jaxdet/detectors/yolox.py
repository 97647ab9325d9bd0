"""YOLOX: every grid point predicts one box; SimOTA chooses the points that learn an object.

Features -> decoupled head -> grid points -> decode -> SimOTA -> box, objectness
and class loss; then boxes -> suppression.

Reference: Ge et al., YOLOX, arXiv:2107.08430; defaults are those of YOLOX-L.
"""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.detectors import features, views
from jaxdet.detectors.assigned import Assigned, Level
from jaxdet.detectors.settings import Group, Pixels, Suppress, group
from jaxdet.models import PAFPN, CSPDarknet, YOLOXHead
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops import boxes as box_ops
from jaxdet.ops import losses
from jaxdet.ops.anchors import GridPoints
from jaxdet.ops.assignment import NEGATIVE, POSITIVE
from jaxdet.ops.box_coder import decode_grid, encode_grid
from jaxdet.ops.box_losses import giou_loss, iou_loss
from jaxdet.ops.simota import SimotaAssignment, assign_simota
from jaxdet.ops.suppression import nms_best_class
from jaxdet.types import AxisName, Detections, Detector, Images, Metrics, Objects

BOX_LOSSES = ("iou_square", "giou")


@group
class Blocks(Group):
    """What YOLOX's backbone, neck and head share.

    Attributes:
        depth: multiple of the number of blocks: .33 for nano, tiny and s, .67
            for m, 1 for l, 1.33 for x.
        width: multiple of the channels: .25, .375, .5, .75, 1 and 1.25.
        depthwise: split 3x3 convolutions, as nano does.
        activation: "silu", "relu" or "leaky_relu".
        norm: "batch", "sync", "group" or "frozen", which needs pretrained weights.
    """

    depth: float = 1.0
    width: float = 1.0
    depthwise: bool = False
    activation: str = "silu"
    norm: str = "batch"


@group
class SimOTA(Group):
    """Which grid points learn an object; see `ops.simota.assign_simota`.

    Attributes:
        centre_radius: a point this near to an object's centre, in strides, may learn it.
        inside_boxes: so may those in its box, but at a penalty unless both hold.
        penalty: of a point that is not both.
        iou_weight: of -log(IoU) beside the class in the cost of a point.
        num_candidates: points that an object learns by, at most.
    """

    centre_radius: float = 2.5
    inside_boxes: bool = True
    penalty: float = 1e5
    iou_weight: float = 3.0
    num_candidates: int = 10


@group
class PointLoss(Group):
    """The losses of the grid points.

    Attributes:
        box_kind: "iou_square", which is 1 - IoU^2, or "giou".
        box_weight: of the box loss in the total.
        objectness_weight: of the objectness loss.
        class_weight: of the class loss.
        l1_weight: of the L1 loss of the raw boxes, in the last part of a run.
    """

    box_kind: str = "iou_square"
    box_weight: float = 5.0
    objectness_weight: float = 1.0
    class_weight: float = 1.0
    l1_weight: float = 1.0


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


class YOLOX(features.Network):
    """Backbone, neck and head.

    Attributes are those of `features.Network`, and:
        head: pyramid -> class logits, offsets and objectness of all grid points.
    """

    head: nn.Module

    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool = False) -> tuple:
        """Class logits, offsets and objectness of all grid points; and the sizes of the maps."""
        maps = self.maps(x, train=train)
        return self.run(self.head, maps, train=train), [level.shape[1:3] for level in maps]


def yolox(
    *,
    num_classes: int,
    pixels: Pixels = Pixels(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), padding=114.0),
    blocks: Blocks = Blocks(),
    backbone: nn.Module = CSPDarknet(),
    neck: nn.Module | None = PAFPN(),
    head: nn.Module = YOLOXHead(),
    assign: SimOTA = SimOTA(),
    loss: PointLoss = PointLoss(),
    suppress: Suppress = Suppress(
        score_threshold=0.01, iou_threshold=0.65, max_detections=300, max_candidates=1000
    ),
    dtype: str = "float32",
    remat: str = "none",
) -> Detector:
    """YOLOX, of any size.

    Pixels go in as 0..255, RGB, with 114 beside the images. The weights of YOLOX
    since 0.1.1 read the same in BGR and are turned when they are loaded.

    Args:
        num_classes: K.
        pixels: how they reach the network.
        blocks: settings of those of the three parts that are YOLOX's own.
        backbone: see `features.Network`.
        neck: see there, too.
        head: pyramid -> class logits (B, N, K), offsets (B, N, 4) and
            objectness (B, N), with the keyword `train`.
        assign: which grid points learn an object.
        loss: what they learn by.
        suppress: the final boxes, clipped to the image after it.
        dtype: of the networks' computation, "float32" or "bfloat16".
        remat: what the backward pass computes again to save memory: "none", the
            "blocks" of the backbone, or "all": those, the neck and the heads.

    Raises:
        ValueError: for settings that do not work; many show only when `loss` or
            `predict` is traced.
    """
    if loss.box_kind not in BOX_LOSSES:
        known = ", ".join(BOX_LOSSES)
        raise ValueError(f"box_kind must be one of {known}; found {loss.box_kind!r}")
    network = make_network(num_classes, blocks, backbone, neck, head, dtype, remat)

    def total_loss(variables, batch, key, *, final=False, axis_name=None):
        """Total loss of the batch; the mean over devices is that of the global batch."""
        del key  # Nothing is drawn.
        outputs, batch_stats = forward(
            network, pixels, variables, batch.images, train=True, axis_name=axis_name
        )
        one = partial(point_targets, assign, outputs.points)
        targets = jax.vmap(one)(*outputs[:3], batch.objects)
        terms = point_losses(loss, outputs, targets, final=final, axis_name=axis_name)
        counts = {"positives": jnp.sum(targets.positive), "objects": jnp.sum(batch.valid)}
        # Of the global batch, as the mean over devices; above 1 if objects learn by several points.
        ratio = counts["positives"] / losses.global_count(counts["objects"], axis_name)
        means = {**terms, "positives_per_object": ratio}
        return sum(terms.values()), (Metrics(means, counts), batch_stats)

    def raw(variables, images):
        """The outputs that prediction decides on."""
        return forward(network, pixels, variables, images, train=False)[0]

    def predict(variables, images):
        """Detections of every image, best first, in canvas pixels."""
        boxes, scores = decode(raw(variables, images))
        return jax.vmap(partial(detections, suppress))(boxes, scores, images.sizes)

    def assign_batch(variables, batch):
        """Which object each point of a batch learns, as `total_loss` has it."""
        outputs, _ = forward(network, pixels, variables, batch.images, train=True)
        one = partial(assign_points, assign, outputs.points)
        found = jax.vmap(one)(*outputs[:3], batch.objects)
        labels = jnp.where(found.positive, POSITIVE, NEGATIVE)
        half = outputs.points.strides[:, None] / 2
        cells = jnp.hstack([outputs.points.centres - half, outputs.points.centres + half])
        maps = features.map_shapes(network, pixels, variables, batch.images)
        sizes = [level.shape[1:3] for level in maps]
        levels = map(Level, features.strides_of(network), sizes, map(math.prod, sizes))
        return Assigned(cells, labels, found.index, tuple(levels), by_prediction=True)

    return features.make_detector(
        network,
        pixels,
        total_loss,
        predict,
        raw=raw,
        assign=assign_batch,
        merge=views.merger(suppress, num_classes, best_class=True),
    )


def make_network(
    num_classes: int,
    blocks: Blocks,
    backbone: nn.Module,
    neck: nn.Module | None,
    head: nn.Module,
    dtype: str,
    remat: str = "none",
) -> YOLOX:
    """The network of `yolox`.

    Raises:
        ValueError: if a part of YOLOX's own says what `blocks` says, and another thing.
    """

    def own(part: nn.Module | None) -> nn.Module | None:
        if not isinstance(part, CSPDarknet | PAFPN | YOLOXHead):
            return part
        plain = type(part)()
        for name, value in vars(blocks).items():
            said = getattr(part, name, value)
            if said not in (value, getattr(plain, name, value)):
                raise ValueError(f"{name} of {part!r} is blocks.{name}, which is {value!r}")
        return features.configure(part, **vars(blocks))

    head = features.configure(head, num_classes=num_classes)
    network = YOLOX(own(backbone), own(neck), own(head))
    return features.prepare(network, dtype=dtype, remat=remat)


def forward(
    network: YOLOX,
    pixels: Pixels,
    variables: dict,
    images: Images,
    *,
    train: bool,
    axis_name: AxisName | None = None,
) -> tuple[Outputs, dict]:
    """The network's outputs, and its running statistics after them."""
    (raw, sizes), batch_stats = features.extract(
        network,
        pixels,
        variables,
        images,
        train=train,
        axis_name=axis_name,
        method="__call__",
    )
    points = anchor_ops.grid_points(sizes, features.strides_of(network))
    return Outputs(*raw, points), batch_stats


def decode(outputs: Outputs) -> tuple[Float[Array, "B N 4"], Float[Array, "B N K"]]:
    """The boxes of all grid points, in pixels, and the scores of each class in them.

    A score is the chance of an object times that of the class.
    """
    boxes = jax.vmap(partial(decode_grid, outputs.points))(outputs.offsets)
    objectness, classes = map(jax.nn.sigmoid, (outputs.objectness, outputs.logits))
    return boxes, objectness[..., None] * classes


def assign_points(
    settings: SimOTA,
    points: GridPoints,
    logits: Float[Array, "N K"],
    offsets: Float[Array, "N 4"],
    objectness: Float[Array, " N"],
    objects: Objects,
) -> SimotaAssignment:
    """Assigns the grid points of one image, by what they predict; crowd regions play no part."""
    truth = objects.boxes, objects.labels, objects.valid
    predicted = decode_grid(points, offsets), logits, objectness
    return assign_simota(points, *predicted, *truth, **vars(settings))


def point_targets(
    settings: SimOTA,
    points: GridPoints,
    logits: Float[Array, "N K"],
    offsets: Float[Array, "N 4"],
    objectness: Float[Array, " N"],
    objects: Objects,
) -> PointTargets:
    """What the grid points of one image learn, as `assign_points` says."""
    found = assign_points(settings, points, logits, offsets, objectness, objects)
    # The slots that no point learns may hold anything.
    boxes = jnp.where(found.positive[:, None], objects.boxes[found.index], 0.0)
    labels = jnp.where(found.positive, objects.labels[found.index], 0)
    return PointTargets(found.positive, boxes, labels, found.overlaps)


def point_losses(
    loss: PointLoss,
    outputs: Outputs,
    targets: PointTargets,
    *,
    final: Bool[Array, ""] | bool = False,
    axis_name: AxisName | None = None,
) -> dict[str, Float[Array, ""]]:
    """The loss terms of a batch, each divided by the positives of the global batch.

    Args:
        loss: the detector's settings.
        outputs: of the network.
        targets: of every image.
        final: whether there is an L1 loss; see `Detector.loss`.
        axis_name: the mapped axis of devices.
    """
    positive = targets.positive
    count = losses.global_count(jnp.sum(positive), axis_name)
    boxes = jax.vmap(partial(decode_grid, outputs.points))(outputs.offsets)
    boxes = jnp.where(positive[..., None], boxes, 0.0)
    box = (
        giou_loss(boxes, targets.boxes)
        if loss.box_kind == "giou"
        else iou_loss(boxes, targets.boxes, form="square")
    )
    classes = jax.nn.one_hot(targets.labels, outputs.logits.shape[-1])
    class_loss = losses.sigmoid_cross_entropy(outputs.logits, classes * targets.overlaps[..., None])
    terms = {
        "box_loss": loss.box_weight * losses.masked_sum(box, positive),
        "objectness_loss": loss.objectness_weight
        * jnp.sum(losses.sigmoid_cross_entropy(outputs.objectness, positive)),
        "class_loss": loss.class_weight * losses.masked_sum(class_loss, positive),
    }
    if final is not False:
        wanted = jax.vmap(partial(encode_grid, outputs.points))(targets.boxes)
        l1 = losses.masked_sum(losses.l1(outputs.offsets, wanted), positive)
        terms["l1_loss"] = jnp.where(final, loss.l1_weight, 0.0) * l1
    return {name: term / count for name, term in terms.items()}


def detections(
    settings: Suppress,
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N K"],
    size: Int[Array, "2"],
) -> Detections:
    """The final boxes of one image; they are clipped to it after suppression.

    Those of which nothing is left are no detections (the reference keeps them).
    """
    found = nms_best_class(boxes, scores, jnp.ones(len(boxes), bool), **vars(settings))
    found = found._replace(boxes=box_ops.clip(found.boxes, size))
    valid = found.valid & (box_ops.area(found.boxes) > 0)
    order = jnp.argsort(~valid, stable=True)  # Slots left over stay behind the others.
    kept = valid[order]
    boxes = jnp.where(kept[:, None], found.boxes[order], 0)
    scores, labels = (jnp.where(kept, v[order], 0) for v in (found.scores, found.labels))
    return Detections(boxes, scores, labels, kept)
