"""Prediction on several views of an image: mirrored, and at other scales.

Each view is made of the canvas on the device, predicted, and brought back; what
all views find goes through the detector's own suppression once more. The result
has the form of a prediction, so that evaluation and export know nothing of it.

Larger scales are made of the resized image, too: they enlarge what is there, and
bring no detail back that the canvas has lost.

Reference: mmdetection 2.11, aug_test_bboxes of its dense detectors, which joins
the views before suppression, where here each view has been suppressed already.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.detectors.settings import Suppress
from jaxdet.ops import boxes as box_ops
from jaxdet.ops.suppression import nms_best_class, nms_per_class
from jaxdet.types import Detections, Detector, Images, UserError

DIVISOR = 32  # Canvases of other scales are filled up to it, as the maps of most networks want.
FILL = 114  # Beside an image; detectors overwrite it.


def with_views(detector: Detector, *, flip: bool = False, scales: Sequence[float] = ()) -> Detector:
    """A detector whose `predict` joins what is found in several views of each image.

    Args:
        detector: of any kind that has `merge`.
        flip: whether each scale is also seen mirrored, left to right.
        scales: of the canvas, above 0; 1 is seen only if it is among them. ()
            stands for (1,).

    Returns:
        The detector itself, where the image as it is is the only view.

    Raises:
        UserError: for a scale out of range, or a detector that cannot merge.
    """
    check_scales(scales)
    scales = tuple(scales) or (1.0,)
    if not flip and scales == (1,):
        return detector
    if detector.merge is None:
        raise UserError("this detector has no `merge`, to join what is found in several views")

    def predict(variables: dict, images: Images) -> Detections:
        """Detections of every image in all views, best first, in canvas pixels."""
        found = []
        for scale in scales:
            shown, ratio = _resize(images, scale)
            found.append(_restore(detector.predict(variables, shown), ratio, images))
            if flip:
                mirrored = detector.predict(variables, _mirror(shown))
                boxes = _mirror_boxes(mirrored.boxes, shown)
                found.append(_restore(mirrored._replace(boxes=boxes), ratio, images))
        union = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *found)
        return jax.vmap(detector.merge)(union)

    return detector._replace(predict=predict)


def check_scales(scales: Sequence[float]) -> None:
    """Refuses all but different numbers above 0.

    Raises:
        UserError: if so.
    """
    if len(set(scales)) < len(scales) or not all(0 < scale < math.inf for scale in scales):
        raise UserError(f"scales of views want different numbers above 0, found {tuple(scales)}")


def merger(suppress: Suppress, num_classes: int, *, best_class: bool = False) -> Callable:
    """`Detector.merge` by a suppression of `ops`.

    Args:
        suppress: its settings.
        num_classes: K.
        best_class: whether it is `nms_best_class`; else `nms_per_class`.
    """

    def merge(found: Detections) -> Detections:
        """Suppression of labelled boxes: each scores in its own class only."""
        scores = found.scores[:, None] * jax.nn.one_hot(found.labels, num_classes)
        if best_class:
            return nms_best_class(found.boxes, scores, found.valid, **vars(suppress))
        return nms_per_class(found.boxes[:, None], scores, found.valid, **vars(suppress))

    return merge


def _resize(images: Images, scale: float) -> tuple[Images, np.ndarray]:
    """The images at another scale, and the ratio of each axis, (y, x)."""
    if scale == 1:
        return images, np.ones(2, np.float32)
    old = images.pixels.shape[1:3]
    new = [max(1, round(side * scale)) for side in old]
    ratio = np.array(new, np.float32) / np.array(old, np.float32)
    shape = (len(images.pixels), *new, 3)
    pixels = jax.image.resize(images.pixels.astype(jnp.float32), shape, "linear")
    beside = [(0, -side % DIVISOR) for side in new]
    if jnp.issubdtype(images.pixels.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    pixels = jnp.pad(
        pixels.astype(images.pixels.dtype),
        [(0, 0), *beside, (0, 0)],
        constant_values=FILL,
    )
    sizes = jnp.round(images.sizes * ratio).astype(images.sizes.dtype)
    proposals = images.proposals
    if proposals is not None:
        proposals = proposals._replace(boxes=proposals.boxes * np.tile(ratio[::-1], 2))
    shown = Images(pixels, jnp.maximum(sizes, 1), images.scales * ratio[0], proposals)
    return shown, ratio


def _mirror(images: Images) -> Images:
    """What an image covers of its canvas, left to right; padding stays where it is."""
    columns = jnp.arange(images.pixels.shape[2])
    width = images.sizes[:, 1:]
    source = jnp.where(columns < width, width - 1 - columns, columns)
    pixels = jax.vmap(lambda image, index: jnp.take(image, index, axis=1))(images.pixels, source)
    proposals = images.proposals
    if proposals is not None:
        proposals = proposals._replace(boxes=_mirror_boxes(proposals.boxes, images))
    return images._replace(pixels=pixels, proposals=proposals)


def _mirror_boxes(boxes: jax.Array, images: Images) -> jax.Array:
    return jax.vmap(box_ops.flip_horizontal)(boxes, images.sizes[:, 1])


def _restore(found: Detections, ratio: np.ndarray, images: Images) -> Detections:
    """Boxes of another scale on the canvas; within their image, whose size was rounded."""
    boxes = found.boxes / np.tile(ratio[::-1], 2)
    return found._replace(boxes=jax.vmap(box_ops.clip)(boxes, images.sizes))
