"""Prediction over a whole data set: from padded batches to boxes on the original images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdet.types import Detections, Example, Images


class ImageDetections(NamedTuple):
    """The detections of one image, in pixels of the original image."""

    boxes: np.ndarray  # (n, 4) float
    scores: np.ndarray  # (n,) float
    labels: np.ndarray  # (n,) int, 0..K-1


# Images, the examples of the real ones, and the place of each among all that are predicted.
Placed = tuple[Images, Sequence[Example], Sequence[int]]


def run(
    predict: Callable[[Images], Detections], batches: Iterable[Placed]
) -> dict[int, tuple[Example, ImageDetections]]:
    """Predicts all batches; see `detect`.

    Returns:
        By its place, each example as given, and its detections.
    """
    return {place: (example, found) for place, example, found in detect(predict, batches)}


def detect(
    predict: Callable[[Images], Detections], batches: Iterable[Placed]
) -> Iterator[tuple[int, Example, ImageDetections]]:
    """Predicts batches and brings the boxes back to the original images.

    A batch is dispatched before the one before it is fetched, so the host
    reads and undoes the resize while the device computes; two batches are
    held on the device.

    Args:
        predict: maps images to their detections, in order, and does not wait
            for them.
        batches: triples of images, the examples of the real ones, in order, and the
            place of each; where there are fewer examples than images, the trailing
            images are padding and are dropped.

    Yields:
        Each place and example as given, and its detections: the valid ones, in
        the detector's order, in original pixels, clipped to the image.

    Raises:
        ValueError: if a batch has more examples than images.
    """
    for output, contents, real, places in _dispatch_one_ahead(predict, batches):
        boxes, scores, labels, valid = map(np.asarray, output)
        for i, (place, example) in enumerate(zip(places, real, strict=True)):
            keep = valid[i]
            restored = restore_boxes(boxes[i][keep], content=contents[i], size=example.size)
            yield place, example, ImageDetections(restored, scores[i][keep], labels[i][keep])


def restore_boxes(
    boxes: Float[np.ndarray, "N 4"], *, content: Int[np.ndarray, " 2"], size: tuple[int, int]
) -> Float[np.ndarray, "N 4"]:
    """Undoes the resize of one image and clips to it.

    Each axis has its own ratio: the resized sides are whole pixels, so that
    the image's one scale would be off by up to half a pixel at the far edge.

    Args:
        boxes: in canvas pixels.
        content: (height, width) of the image on the canvas.
        size: (height, width) of the original image.
    """
    (content_height, content_width), (height, width) = content, size
    limit = np.array([width, height, width, height], boxes.dtype)
    ratio = limit / np.array([content_width, content_height] * 2, boxes.dtype)
    return np.clip(boxes * ratio, 0, limit)


def _dispatch_one_ahead(predict, batches) -> Iterator:
    waiting = None
    for images, real, places in batches:
        if len(real) > len(images.sizes):
            raise ValueError(f"{len(real)} examples in a batch of {len(images.sizes)} images")
        dispatched = predict(images), images.sizes, real, places
        if waiting is not None:
            yield waiting
        waiting = dispatched
    if waiting is not None:
        yield waiting
