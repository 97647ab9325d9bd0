"""Examples and detections of a line each."""

import numpy as np

from jaxdet.evaluation import ImageDetections
from jaxdet.types import Example

SIZE = (480, 640)


def make_example(boxes=(), labels=(), *, crowd=None, difficult=None, area=None, id="a", size=SIZE):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    no = np.zeros(len(boxes), bool)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Example(
        id=id,
        image=b"",
        boxes=boxes,
        labels=np.asarray(labels, np.int32),
        crowd=no if crowd is None else np.asarray(crowd),
        difficult=no if difficult is None else np.asarray(difficult),
        area=np.asarray(sides.prod(axis=1) if area is None else area, np.float64),
        size=size,
    )


def make_detections(boxes=(), scores=(), labels=()):
    return ImageDetections(
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.asarray(labels, np.int32),
    )


def make_random(rng, *, num_images, num_classes, max_objects, max_found):
    """Objects on a coarse grid, and detections near them or anywhere, some with equal scores."""
    examples, detections = [], []
    for image in range(num_images):
        n, m = rng.integers(0, max_objects + 1), rng.integers(0, max_found + 1)
        boxes, labels = _draw_boxes(rng, n), rng.integers(0, num_classes, n)
        found, guesses = _draw_boxes(rng, m), rng.integers(0, num_classes, m)
        if n:
            near = np.flatnonzero(rng.random(m) < 0.8)
            objects = rng.integers(0, n, len(near))
            found[near] = boxes[objects] + rng.integers(-2, 3, (len(near), 4))
            guesses[near] = labels[objects]
        ignored = rng.random((2, n)) < 0.1
        examples.append(
            make_example(boxes, labels, crowd=ignored[0], difficult=ignored[1], id=image)
        )
        detections.append(make_detections(found, rng.integers(1, 30, m) / 32, guesses))
    return examples, detections


def _draw_boxes(rng, count):
    low, sides = rng.integers(0, 200, (count, 2)), rng.choice([16, 24, 40, 120], (count, 2))
    return np.concatenate([low, low + sides], axis=1)
