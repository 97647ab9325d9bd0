"""Images and objects that both sides of a benchmark see: the same numbers from a seed."""

from typing import NamedTuple

import numpy as np

# Published models tell so many apart.
NUM_CLASSES = {"faster_rcnn": 90, "retinanet": 90, "yolox": 80}
# Of the maps that regions are read from.
STRIDES = (4, 8, 16, 32)
# The last norm of a residual block is scaled by it: under frozen norms random weights would
# let maps grow without bound, and boxes and suppression with them.
CALM = 0.2
# So small a learning rate that these weights stay where they are, whatever the number of calls.
RATE = 1e-6
# What input is made for: (height, width) of the canvas, (short, long) sides of the resize.
TARGETS = {"small": ((320, 480), (320, 480)), "large": ((800, 1344), (800, 1333))}


class Scenes(NamedTuple):
    """A batch.

    Attributes:
        pixels: (B, H, W, 3) in 0..255, noise.
        boxes: (B, G, 4) pixels, within the images.
        labels: (B, G) in 0..K-1.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def draw(count: int, size: tuple[int, int], num_classes: int, *, objects: int = 20) -> Scenes:
    """Noise with boxes whose sides are spread evenly on a log scale, from 24 pixels to half."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    boxes = draw_boxes(rng, (count, objects), size, least=24, most=min(size) / 2)
    return Scenes(pixels, boxes, rng.integers(0, num_classes, (count, objects), dtype=np.int32))


def draw_boxes(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    size: tuple[int, int],
    *,
    least: float,
    most: float,
) -> np.ndarray:
    """Boxes of sides between two lengths in pixels, within an image of (height, width)."""
    sides = np.exp(rng.uniform(np.log(least), np.log(most), (*shape, 2)))
    room = np.asarray(size[::-1]) - sides
    corners = rng.uniform(0, 1, (*shape, 2)) * room
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def draw_candidates(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (count, 4) as an RPN makes them, several around each of some centres, and scores."""
    rng = np.random.default_rng(0)
    around = draw_boxes(rng, (count // 20 + 1,), (800, 1344), least=24, most=400)
    boxes = around[rng.integers(0, len(around), count)]
    boxes = boxes + rng.normal(0, 12, boxes.shape).astype(np.float32)
    # A corner that passed the other would be a box without area.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    return boxes, rng.uniform(0, 1, count).astype(np.float32)


def draw_pyramid(
    size: tuple[int, int], regions: int, channels: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Maps (H, W, C) of noise at `STRIDES`, and regions (P, 4) of all sizes from 16 pixels on."""
    rng = np.random.default_rng(0)
    maps = [
        rng.normal(0, 1, (-(-size[0] // s), -(-size[1] // s), channels)).astype(np.float32)
        for s in STRIDES
    ]
    return maps, draw_boxes(rng, (regions,), size, least=16, most=min(size))


def draw_files(size: tuple[int, int], count: int = 16) -> list[bytes]:
    """JPEG files of smooth pictures with some noise, near the bytes a pixel of photographs."""
    import cv2  # Of this one alone: whoever times a step needs no pictures.

    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return files
