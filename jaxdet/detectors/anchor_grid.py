"""The anchors of a batch of images on one canvas, and what they are assigned to."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdet.detectors import features
from jaxdet.detectors.assigned import Assigned, Level
from jaxdet.detectors.settings import AnchorGrid, Assign, Inside, Pixels
from jaxdet.ops import anchors as anchor_ops
from jaxdet.ops.assignment import Assignment, assign_by_iou
from jaxdet.types import Batch, Images, Objects


class Anchors(NamedTuple):
    """The anchors of all levels, the same for every image of a batch."""

    boxes: Float[Array, "N 4"]
    valid: Bool[Array, "B N"]  # Of cells that the image covers, not its padding.
    level_sizes: tuple[int, ...]  # They sum to N.


def make_anchors(
    pyramid: Sequence[Float[Array, "B _ _ C"] | jax.ShapeDtypeStruct],
    images: Images,
    *,
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    centre: float = 0.0,
    divisor: int,
    whole_cells: bool = False,
    rounded: bool = False,
) -> Anchors:
    """Anchors on every cell of a pyramid, and which of them each image covers.

    Args:
        pyramid: feature maps; only their sizes are read.
        images: the batch; its canvas and the images' sizes are read.
        strides: see `ops.anchors.pyramid_anchors`, as `scales`, `ratios` and `centre`.
        scales: sides of the square anchors, in strides.
        ratios: height / width.
        centre: where in a cell its anchors are centred, 0 to 1.
        divisor: an image's sides are rounded up to it; see `ops.anchors.pyramid_valid`.
        whole_cells: see there, too.
        rounded: see `ops.anchors.pyramid_anchors`; cells share the canvas then.
    """
    feature_sizes = [level.shape[1:3] for level in pyramid]
    boxes = anchor_ops.pyramid_anchors(
        feature_sizes,
        strides,
        scales=scales,
        ratios=ratios,
        centre=centre,
        rounded=rounded,
        canvas=images.pixels.shape[1:3] if rounded else None,
    )
    num_base = len(scales) * len(ratios)
    covered = partial(
        anchor_ops.pyramid_valid,
        feature_sizes,
        strides,
        num_base=num_base,
        divisor=divisor,
        whole_cells=whole_cells,
    )
    level_sizes = tuple(height * width * num_base for height, width in feature_sizes)
    return Anchors(jnp.asarray(boxes), jax.vmap(covered)(images.sizes), level_sizes)


def may_predict(anchors: Anchors, settings: AnchorGrid) -> Bool[Array, "B N"]:
    """The anchors that may become boxes: all, as in mmdetection, beside the image, too.

    Where maps end with their image, as `whole_cells` says, those of its own cells only.

    Args:
        anchors: of the batch.
        settings: what made them.
    """
    return anchors.valid if settings.whole_cells else jnp.ones_like(anchors.valid)


def assign(
    anchors: Float[Array, "N 4"],
    valid: Bool[Array, " N"],
    size: Int[Array, "2"],
    objects: Objects,
    *,
    inside: Inside,
    assign: Assign,
) -> Assignment:
    """Assigns the objects of one image to the anchors that may train there.

    Args:
        anchors: of all levels.
        valid: those of cells that the image covers.
        size: (height, width) of the image.
        objects: its ground truth.
        inside: the anchors that may train.
        assign: which of them learn an object.
    """
    may_train = valid & anchor_ops.inside_image(anchors, size, **vars(inside))
    return assign_by_iou(
        anchors, may_train, objects.boxes, objects.valid, objects.crowd, **vars(assign)
    )


def assigner(
    network: features.Network, pixels: Pixels, grid: AnchorGrid, inside: Inside, settings: Assign
) -> Callable:
    """`Detector.assign` of a network whose anchors learn by `assign`.

    Of the variables only the shapes count.
    """
    strides = features.strides_of(network)

    def assign_batch(variables: dict, batch: Batch) -> Assigned:
        """Which object each anchor of a batch learns, before any are sampled."""
        pyramid = features.map_shapes(network, pixels, variables, batch.images)
        anchors = make_anchors(pyramid, batch.images, strides=strides, **vars(grid))
        one = partial(assign, anchors.boxes, inside=inside, assign=settings)
        found = jax.vmap(one)(anchors.valid, batch.images.sizes, batch.objects)
        sizes = [level.shape[1:3] for level in pyramid]
        levels = tuple(map(Level, strides, sizes, anchors.level_sizes))
        return Assigned(anchors.boxes, found.labels, found.index, levels)

    return assign_batch
