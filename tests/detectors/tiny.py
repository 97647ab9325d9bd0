"""Small detectors, drawn images and objects for the tests of this folder."""

import jax
import numpy as np

from jaxdet import detectors
from jaxdet.types import Batch, Images, Proposals

HEIGHT, WIDTH, SLOTS, CLASSES, GIVEN = 64, 96, 5, 2, 40
FEATURES = dict(backbone=dict(depth=10, width=8, norm="group"), neck=dict(channels=16))
RPN = dict(
    anchors=dict(scales=(4.0,)),
    sample=dict(num_samples=32),
    train=dict(pre_nms=60, num_proposals=40),
    test=dict(pre_nms=40, num_proposals=30),
    confusion=True,
)
SUPPRESS = dict(max_detections=10, max_candidates=60)
ROI = dict(
    sample=dict(num_samples=16),
    pool=dict(max_sampling=2),
    head=dict(hidden=32),
    suppress=SUPPRESS,
    confusion=True,
)
SETTINGS = {
    "rpn": FEATURES | dict(rpn=RPN),
    "retinanet": FEATURES
    | dict(
        head=dict(num_convs=1),
        anchors=dict(scales=(2.0,)),
        pre_nms=40,
        suppress=SUPPRESS,
    ),
    "fast_rcnn": FEATURES | dict(roi=ROI),
    "yolox": dict(
        blocks=dict(depth=0.33, width=0.125, activation="relu", norm="group"),
        suppress=SUPPRESS,
    ),
    "faster_rcnn": FEATURES | dict(rpn=RPN, roi=ROI),
}


def build(name, **settings):
    """A tiny detector, changed by nested settings."""
    return detectors.build(name, num_classes=CLASSES, **merge(SETTINGS[name], settings))


def merge(settings, changes):
    """Nested settings with the changes in their places."""
    both = {
        key: merge(settings[key], change)
        for key, change in changes.items()
        if isinstance(change, dict) and key in settings
    }
    return settings | changes | both


def draw_batch(name, count=8, seed=0, first=0):
    """Bright and dark rectangles (two classes) on noise, 0 to 4 an image."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 140, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)
    boxes = np.zeros((count, SLOTS, 4), np.float32)
    labels, valid = np.zeros((count, SLOTS), np.int32), np.zeros((count, SLOTS), bool)
    for i in range(count):
        for slot in range(i % SLOTS):
            x, y = rng.integers(0, WIDTH - 24), rng.integers(0, HEIGHT - 24)
            width, height = rng.integers(12, 24, 2)
            labels[i, slot] = rng.integers(CLASSES)
            pixels[i, y : y + height, x : x + width] = 240 if labels[i, slot] else 10
            boxes[i, slot], valid[i, slot] = (x, y, x + width, y + height), True
    proposals = draw_proposals(rng, boxes) if name == "fast_rcnn" else None
    sizes = np.tile([[HEIGHT, WIDTH]], (count, 1))
    images = Images(pixels, sizes, np.ones(count, np.float32), proposals)
    index = np.arange(first, first + count, dtype=np.uint32)
    batch = Batch(images, boxes, labels, valid, np.zeros_like(valid), index)
    return jax.device_put(batch)


def draw_proposals(rng, boxes):
    """Boxes near the objects, then boxes anywhere, then padding."""
    count = len(boxes)
    near = np.repeat(boxes, 4, axis=1) + rng.normal(scale=2, size=(count, 4 * SLOTS, 4))
    corner = rng.uniform(0, 60, (count, GIVEN - 4 * SLOTS, 2))
    anywhere = np.concatenate([corner, corner + rng.uniform(4, 36, corner.shape)], axis=-1)
    given = np.concatenate([near, anywhere], axis=1)
    limit = np.array([WIDTH, HEIGHT] * 2)
    valid = np.tile(np.arange(GIVEN) < GIVEN - 5, (count, 1))
    return Proposals(np.clip(given, 0, limit).astype(np.float32), 1.0 * valid, valid)


def drawn_variables(detector, batch):
    """Variables without compiling `init`: kernels of He's size, scales 1, biases 0."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.normal(size=leaf.shape) * np.sqrt(1 / fan_in)).astype(np.float32)
        return np.full(leaf.shape, name in ("scale", "var"), np.float32)

    shapes = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
    # In NumPy and put at once: jnp would compile a program for each shape, and its floats are
    # of a weak type, for which all that takes them would be compiled again.
    return jax.device_put(jax.tree.map_with_path(draw, shapes))
