"""Pictures composed of several: mosaics of four, moved and mixed with a fifth (YOLOX).

Images come resized to fit the canvas; results fill it. As everywhere in the
data, nothing is written into an input, and all draws come from one generator.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from jaxdet.data import transforms
from jaxdet.data.affine import is_visible, random_affine
from jaxdet.data.decoding import FILL
from jaxdet.types import Example

# Objects of the picture that is mixed in have sides above this, pixels (YOLOX 0.1).
MIXUP_MIN_SIDE = 5.0
# So many pictures are drawn in search of one that shows an object.
_MAX_DRAWS = 10


class Composition(NamedTuple):
    """Random compositions of several training images; YOLOX 0.1's, but off.

    Attributes:
        mosaic: probability that an image becomes a mosaic with three others.
        mixup: probability that a mosaic is mixed with another image.
        mixup_zoom: that image's zoom is drawn evenly from here.
        rotation: mosaics are rotated by up to so many degrees either way, 0 to 180.
        translation: and moved by up to this share of the canvas either way.
        affine_zoom: and zoomed by a factor drawn evenly from here.
        shear: and sheared along each axis by up to so many degrees either way, 0 to 40.
        affine_boxes: "corners" or "ellipse", as in `affine.move`.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    mixup_zoom: tuple[float, float] = (0.5, 1.5)
    rotation: float = 10.0
    translation: float = 0.1
    affine_zoom: tuple[float, float] = (0.1, 2.0)
    shear: float = 2.0
    affine_boxes: Literal["corners", "ellipse"] = "corners"


def compose(
    example: Example,
    draw: Callable[[bool], Example | None],
    rng: np.random.Generator,
    *,
    canvas: tuple[int, int],
    settings: Composition,
) -> Example:
    """A mosaic of an image and three others, moved, and sometimes mixed with one more.

    The image that is mixed in shows an object other than a crowd; where ten
    draws find none, nothing is mixed in (YOLOX draws until it finds one).
    A mosaic that shows nothing is mixed, too (YOLOX leaves it).

    Args:
        example: the image whose turn it is.
        draw: gives another image of the data at each call; called with True, None
            where it shows nothing but crowds.
        rng: of all other draws.
        canvas: (height, width) of the result.
        settings: `mosaic` is not looked at.
    """
    tiles = [example, *(draw(False) for _ in range(3))]
    composed = random_affine(
        mosaic(tiles, rng, canvas=canvas),
        rng,
        output_size=canvas,
        rotation=settings.rotation,
        translation=settings.translation,
        zoom_range=settings.affine_zoom,
        shear=settings.shear,
        box_rule=settings.affine_boxes,
    )
    if rng.random() >= settings.mixup:
        return composed
    for _ in range(_MAX_DRAWS):
        other = draw(True)
        if other is not None:
            return mixup(composed, other, rng, canvas=canvas, zoom_range=settings.mixup_zoom)
    return composed


def mosaic(
    examples: Sequence[Example], rng: np.random.Generator, *, canvas: tuple[int, int]
) -> Example:
    """Four images that meet at a random point of a canvas of twice the size.

    The first lies to the top left of the point, then top right, bottom left
    and bottom right; grey 114 is beside them, and what leaves the canvas is cut
    off. The point is drawn evenly from the middle half of the large canvas's
    height and width. Boxes are clipped; objects of which no pixel is left are left out,
    of crowds those of which nothing is.

    Args:
        examples: four, decoded, none larger than the canvas.
        rng: draws the point.
        canvas: (height, width), half the result's.

    Returns:
        An example with the first one's id and `size`, the objects of all in their
        order, and no proposals.

    Reference: Bochkovskiy et al., YOLOv4, sec. 3.3, arXiv:2004.10934; YOLOX 0.1.
    """
    height, width = (2 * side for side in canvas)
    top, left = (int(side * rng.uniform(0.5, 1.5)) for side in canvas)
    image = np.full((height, width, 3), FILL, np.uint8)
    parts = []
    for k, example in enumerate(examples):
        tile_height, tile_width = example.image.shape[:2]
        y = top - tile_height if k < 2 else top
        x = left - tile_width if k % 2 == 0 else left
        y1, x1 = max(y, 0), max(x, 0)
        y2, x2 = min(y + tile_height, height), min(x + tile_width, width)
        image[y1:y2, x1:x2] = example.image[y1 - y : y2 - y, x1 - x : x2 - x]
        boxes = np.clip(example.boxes + np.float32([x, y, x, y]), [x1, y1] * 2, [x2, y2] * 2)
        part = example._replace(boxes=boxes.astype(np.float32))
        keep = transforms.has_pixel(part.boxes) | transforms.crowds_left(part)
        parts.append(transforms.select(part, keep))
    return _join(parts)._replace(image=image)


def mixup(
    example: Example,
    other: Example,
    rng: np.random.Generator,
    *,
    canvas: tuple[int, int],
    zoom_range: tuple[float, float] = (0.5, 1.5),
) -> Example:
    """Blends another image into one, half and half; the objects of both count.

    The other one is padded to the canvas, zoomed, mirrored with a chance of
    1/2, and padded again, or cropped at a random place. Padding is at the right
    and bottom, always of grey 114 (YOLOX 0.1: black where the zoomed one is
    smaller); all places of the crop are alike (YOLOX never draws the last one).
    Its boxes are clipped; `affine.is_visible` tells which are kept, with sides above
    5 pixels; where there are none, the image stays as it is. What is left of crowds
    is kept, too.

    Args:
        example: fills the canvas.
        other: decoded, not larger than the canvas.
        rng: draws the zoom, the mirroring and the place.
        canvas: (height, width) of both.
        zoom_range: a factor is drawn evenly from it.

    Reference: Zhang et al., mixup, arXiv:1710.09412; Zhang et al., Bag of Freebies,
    sec. 3.1, arXiv:1902.04103 (detection); YOLOX 0.1.
    """
    height, width = canvas
    padded = other._replace(image=_window(other.image, 0, 0, canvas))
    zoomed = transforms.resize(padded, rng.uniform(*zoom_range))
    if rng.random() < 0.5:
        zoomed = transforms.flip_horizontal(zoomed)
    spare = np.maximum(np.array(zoomed.image.shape[:2]) - canvas, 0)
    top, left = rng.integers(0, spare, endpoint=True)
    corner = np.float32([left, top, left, top])
    boxes = np.clip(zoomed.boxes - corner, 0, np.float32([width, height, width, height]))
    keep = is_visible(boxes, transforms.areas(zoomed.boxes), min_side=MIXUP_MIN_SIDE)
    if not keep.any():
        return example
    shown = _window(zoomed.image, top, left, canvas)
    image = cv2.addWeighted(example.image, 0.5, shown, 0.5, 0)
    moved = zoomed._replace(boxes=boxes)
    seen = transforms.select(moved, keep | transforms.crowds_left(moved))
    return _join([example, seen])._replace(image=image)


def _window(image, top, left, size):
    """A window of an image from a corner on, with grey where it reaches out."""
    part = image[top : top + size[0], left : left + size[1]]
    bottom, right = size[0] - part.shape[0], size[1] - part.shape[1]
    grey = (FILL,) * 3
    return cv2.copyMakeBorder(part, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=grey)


def _join(examples):
    """The first example with the objects of all, and without proposals."""
    joined = {
        name: np.concatenate([getattr(example, name) for example in examples])
        for name in transforms.OBJECT_FIELDS
    }
    return examples[0]._replace(**joined, proposals=None, proposal_scores=None)
