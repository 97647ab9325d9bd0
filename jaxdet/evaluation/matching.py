"""Which detection finds which object, at one IoU: what curves and errors are counted on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdet.evaluation.labels import check_input
from jaxdet.evaluation.runner import ImageDetections
from jaxdet.types import Example

THRESHOLD = 0.5  # The IoU from which a box finds an object.
LIMIT = 100  # Detections of an image that count, of all classes together.


class Matches(NamedTuple):
    """The detections of a data set, N in all, and its M objects to find.

    Detections stand by image, the best first; objects are named by their places.

    Attributes:
        images: place of each detection's image.
        scores: its score.
        labels: its class.
        objects: the object that it finds; -1 for none.
        ignored: it finds none, and lies on a crowd or difficult object of its class:
            neither right nor wrong.
        same: the object of its class that it covers best; of no meaning where the
            IoU is 0.
        same_iou: the IoU with that object, found by whichever detection; 0 for none.
        other: the object of another class that it covers best; likewise.
        other_iou: the IoU with that.
        object_images: place of each object's image.
        object_labels: its class.
        num_images: with or without objects or detections.
    """

    images: Int[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    objects: Int[np.ndarray, " N"]
    ignored: Bool[np.ndarray, " N"]
    same: Int[np.ndarray, " N"]
    same_iou: Float[np.ndarray, " N"]
    other: Int[np.ndarray, " N"]
    other_iou: Float[np.ndarray, " N"]
    object_images: Int[np.ndarray, " M"]
    object_labels: Int[np.ndarray, " M"]
    num_images: int

    @property
    def hits(self) -> Bool[np.ndarray, " N"]:
        """Whether each detection finds an object."""
        return self.objects >= 0

    @property
    def found(self) -> Bool[np.ndarray, " M"]:
        """Whether each object is found."""
        found = np.zeros(len(self.object_labels), bool)
        found[self.objects[self.hits]] = True
        return found


def match(
    examples: Sequence[Example],
    detections: Sequence[ImageDetections],
    *,
    num_classes: int,
    threshold: float = THRESHOLD,
    limit: int = LIMIT,
) -> Matches:
    """Gives each detection, the best first, the free object of its class that it covers best.

    Who finds what does not change when detections below some score are left out.

    Args:
        examples: one per image; crowd and difficult objects are ignored, as
            `coco.evaluate` ignores them.
        detections: one per image, in the same order.
        num_classes: K.
        threshold: the lowest IoU with which an object is found, above 0.
        limit: so many of the best detections of an image count.

    Raises:
        ValueError: if the lengths differ, or a label is not in 0..num_classes-1.
    """
    check_input(examples, detections, num_classes)
    rows, object_images, object_labels = [], [], []
    start = 0
    for image, (example, found) in enumerate(zip(examples, detections, strict=True)):
        counted = ~np.logical_or(example.crowd, example.difficult)
        labels = np.asarray(example.labels, np.int64)
        order = np.argsort(-np.asarray(found.scores, np.float64), kind="stable")[:limit]
        found = ImageDetections(found.boxes[order], found.scores[order], found.labels[order])
        row = _match_image(example.boxes, labels, counted, found, threshold, start)
        rows.append((np.full(len(order), image), *row))
        object_labels.append(labels[counted])
        object_images.append(np.full(int(counted.sum()), image))
        start += int(counted.sum())
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)] if rows else []
    columns = columns or [
        np.zeros(0, kind) for kind in (int, float, int, int, bool, *[int, float] * 2)
    ]
    nothing = [np.zeros(0, int)]
    return Matches(
        *columns,
        np.concatenate(object_images or nothing),
        np.concatenate(object_labels or nothing),
        len(examples),
    )


def _match_image(boxes, labels, counted, found, threshold, start):
    """The columns of one image; its first object has the place `start`."""
    scores, found_labels = np.asarray(found.scores, float), np.asarray(found.labels, np.int64)
    intersections, areas, object_areas = _overlaps(found.boxes, boxes)
    unions = areas[:, None] + object_areas - intersections
    ious = np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)
    shares = np.divide(
        intersections, areas[:, None], out=np.zeros_like(unions), where=areas[:, None] > 0
    )
    is_same = found_labels[:, None] == labels
    inside = ((shares > threshold) & is_same)[:, ~counted].any(axis=1)
    ious, is_same = ious[:, counted], is_same[:, counted]
    same, same_iou = _best(ious * is_same)
    other, other_iou = _best(ious * ~is_same)
    objects = np.full(len(scores), -1)
    free = ious * is_same
    for i in np.flatnonzero(same_iou >= threshold):
        j = free[i].argmax()
        if free[i, j] >= threshold:
            objects[i] = start + j
            free[:, j] = 0
    ignored = inside & (objects < 0)
    return scores, found_labels, objects, ignored, start + same, same_iou, start + other, other_iou


def _best(values):
    if not values.shape[1]:
        return np.zeros(len(values), int), np.zeros(len(values))
    places = values.argmax(axis=1)
    return places, values[np.arange(len(values)), places]


def _overlaps(first, second):
    """Areas of the intersections, (n, m), and of the boxes themselves."""
    first, second = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (first, second))
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum(first[:, None, 2:], second[:, 2:])
    sides = np.maximum(high - low, 0)
    # NaN stands for a box of a model that has diverged: it covers nothing.
    intersections = np.nan_to_num(sides[..., 0] * sides[..., 1])
    return intersections, *((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (first, second))
