"""Draws the pictures of docs/augmentations.md with the pipeline's own functions.

`python docs/draw_augmentations.py` writes docs/images/augmentations_*.jpg again; `--folder`
writes them elsewhere. The photographs are drawn where JAXDET_BCCD names their folder.
"""

import argparse
import os
import pathlib
import tempfile
from contextlib import closing

import cv2
import numpy as np

from jaxdet.data import transforms
from jaxdet.data.affine import BOX_RULES, affine_matrix, move, random_affine
from jaxdet.data.mosaic import mixup, mosaic
from jaxdet.data.pipeline import train_batches
from jaxdet.data.sources.shapes import read_shapes
from jaxdet.data.sources.voc import read_voc
from jaxdet.types import Example, Source
from jaxdet.visualize import FONT, PALETTE, grid

INK, WHITE = (40, 40, 40), (255, 255, 255)
LINE, TEXT = 20, 0.46
WIDTH = 400  # Of a drawn panel, pixels.
YOLOX = {"mosaic": 1.0, "mixup": 1.0, "hsv": (0.015, 0.7, 0.4), "min_side": 8.0}


def draw_steps(source: Source, canvas: tuple[int, int], seed: int) -> np.ndarray:
    """A mosaic, what an affine map makes of it, and what is mixed with it."""
    rng = np.random.default_rng(seed)
    *tiles, other = (_resized(source[k], canvas) for k in range(5))
    joined = mosaic(tiles, rng, canvas=canvas)
    moved = random_affine(joined, rng, output_size=canvas, zoom_range=(0.6, 1.2))
    mixed = mixup(moved, other, rng, canvas=canvas, zoom_range=(0.8, 1.2))
    coloured = transforms.augment(
        mixed, rng, settings=transforms.Augmentation(horizontal_flip=1.0, hsv=YOLOX["hsv"])
    )
    return grid(
        [
            _panel(joined, "mosaic: four images meet at a random\npoint of twice the canvas"),
            _panel(moved, "rotation, translation, zoom and shear\ntake it to the canvas"),
            _panel(mixed, "mixup: the mean with a fifth image;\nthe objects of both"),
            _panel(coloured, "flip and hsv, as for plain images\n"),
        ],
        2,
    )


def draw_rules(source: Source, canvas: tuple[int, int]) -> np.ndarray:
    """The two rules for boxes, on a picture that is turned further and further."""
    example, panels = _resized(source[5], canvas), []
    for angle in (10.0, 45.0):
        matrix = affine_matrix(
            canvas, canvas, angle=angle, zoom=0.8, shear=(0.0, 0.0), shift=(0.0, 0.0)
        )
        moved = [move(example, matrix, output_size=canvas, box_rule=rule) for rule in BOX_RULES]
        image, factor = _enlarged(moved[0].image)
        for turned, colour in zip(moved, PALETTE, strict=False):
            for box in turned.boxes:
                _box(image, box * factor, colour)
        panels.append(
            _titled(image, f"turned by {angle:.0f} degrees:\nblue corners, orange ellipse")
        )
    return grid(panels, 2)


def draw_batch(source: Source, canvas: tuple[int, int]) -> np.ndarray:
    """The first training images of a run with YOLOX's settings."""
    settings = {"batch_size": 4, "seed": 1, "canvas": canvas, "resize": canvas, "max_boxes": 120}
    with closing(train_batches(source, **settings, **YOLOX)) as batches:
        batch = next(batches)
    panels = []
    for pixels, boxes, labels, valid in zip(
        batch.images.pixels, batch.boxes, batch.labels, batch.valid, strict=True
    ):
        panels.append(_drawn(pixels, boxes[valid], labels[valid]))
    return grid(panels, 2)


def draw_all(folder: pathlib.Path) -> None:
    """Writes every picture into a folder."""
    with tempfile.TemporaryDirectory() as root:
        shapes = read_shapes(root=root, split="train", num_train=8, num_test=1, empty_rate=0.0)
        _write(folder, "shapes", draw_steps(shapes, (160, 192), seed=4))
        _write(folder, "rules", draw_rules(shapes, (160, 192)))
    photographs = os.environ.get("JAXDET_BCCD")
    if photographs:
        cells = read_voc(root=photographs, split="train", classes=("RBC", "WBC", "Platelets"))
        _write(folder, "cells", draw_steps(cells, (240, 320), seed=4))
        _write(folder, "batch", draw_batch(cells, (240, 320)))


def _write(folder, name, image):
    path = str(folder / f"augmentations_{name}.jpg")
    cv2.imwrite(path, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])


def _resized(example: Example, canvas: tuple[int, int]) -> Example:
    """The example as the pipeline resizes it to a canvas."""
    example = transforms.clean(transforms.decode(example))
    size = example.image.shape[:2]
    scale = transforms.fit_scale(size, short=min(canvas), long=max(canvas), canvas=canvas)
    return transforms.resize(example, scale)


def _panel(example, title):
    return _titled(_drawn(example.image, example.boxes, example.labels), title)


def _drawn(image, boxes, labels):
    """The image enlarged, with boxes in the colours of their classes."""
    image, factor = _enlarged(image)
    for box, label in zip(boxes * factor, labels, strict=True):
        _box(image, box, PALETTE[label])
    return image


def _enlarged(image):
    factor = WIDTH / image.shape[1]
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    size = WIDTH, round(image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=method), factor


def _box(canvas, box, colour):
    """Two pixels around the box, and a white edge: what it holds stays visible."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    for away, line in ((3, WHITE), (2, colour), (1, colour)):
        cv2.rectangle(canvas, (x1 - away, y1 - away), (x2 - 1 + away, y2 - 1 + away), line, 1)


def _titled(image, title):
    """The image below its title of two lines."""
    sheet = np.full((2 * LINE + 8, image.shape[1], 3), 255, np.uint8)
    for number, line in enumerate(title.split("\n"), start=1):
        cv2.putText(sheet, line, (4, LINE * number), FONT, TEXT, INK, 1, cv2.LINE_AA)
    return np.concatenate([sheet, image])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path(__file__).parent / "images"
    )
    draw_all(parser.parse_args().folder)
