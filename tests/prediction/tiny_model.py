"""A tiny detector as a model file holds it, and drawn photographs."""

import cv2
import jax
import numpy as np
from detectors import tiny

from jaxdet import detectors, model_file

CANVAS, RESIZE = (64, 96), (64, 96)
NAMES, IDS = ("circle", "square"), (7, 90)
# (height, width): smaller and larger than the canvas, upright, and much too large.
SIZES = [(40, 50), (64, 96), (120, 80), (333, 222), (75, 400)]


DRAWN = {}  # Variables by what they depend on: to trace a network takes seconds.


def draw_contents(name="yolox", **changes):
    """Contents of a model file; the weights are drawn at random, and find something."""
    fields = dict(class_names=NAMES, category_ids=IDS, canvas=CANVAS, resize=RESIZE)
    fields |= dict(settings=tiny.SETTINGS[name]) | changes
    slots = fields.get("max_proposals", 0)
    key = repr((name, fields["settings"], slots))
    if key not in DRAWN:
        DRAWN[key] = _draw_variables(name, fields["settings"], slots)
    return model_file.Contents(detector=name, variables=DRAWN[key], **fields)


def _draw_variables(name, settings, slots):
    detector = detectors.build(name, num_classes=2, **settings)
    images = model_file.blank_images(1, CANVAS, slots)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.1
        return rng.normal(0, spread, leaf.shape).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def draw_photograph(size, seed):
    """RGB pixels: blurred noise, so that JPEG and resizes have something to do."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return cv2.blur(noise, (5, 5))


def write_photographs(folder, sizes=SIZES, ending=".png"):
    """Photographs as files; gives their paths."""
    paths = []
    for i, size in enumerate(sizes):
        paths.append(folder / f"photo{i}{ending}")
        pixels = draw_photograph(size, i)
        paths[-1].write_bytes(cv2.imencode(ending, pixels[..., ::-1])[1].tobytes())
    return paths
