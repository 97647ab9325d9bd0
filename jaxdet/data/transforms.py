"""From encoded files to pixels on a canvas; boxes and proposals follow the image.

All functions return new Examples and never write into their input. Pixels are
RGB uint8, or floats in 0..255 once resized as such; boxes are in pixels of the
example's `image`; `size` and `area` stay those of the original.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from jaxdet.data import colour, decoding
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.interpolation import bilinear
from jaxdet.types import Example

EXIF_RULES = ("boxes", "always", "never")
# One pixel, less the rounding error of boxes that were stored as fractions.
MIN_SIDE = 0.999
# A crop keeps objects of which at least this part of the area is left.
MIN_VISIBLE = 0.25
# What an Example says of each object, in arrays of the same length.
OBJECT_FIELDS = ("boxes", "labels", "crowd", "difficult", "area")


class Augmentation(NamedTuple):
    """Random changes to a training image.

    Attributes:
        horizontal_flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
        brightness: pixels are multiplied by a factor within 1 +- this.
        contrast: differences from the image's mean grey, likewise.
        saturation: differences from each pixel's grey, likewise.
        zoom_range: the resize scale is multiplied by a factor drawn from
            here, evenly in its logarithm; above 1 a random part of the image
            is cut out, so that the result never outgrows the unzoomed one.
        hsv: hue, saturation and value are multiplied by factors within 1 +- each
            of these; see `colour.scale_hsv`. YOLOX: (0.015, 0.7, 0.4).
        min_side: canvas pixels. Objects whose shorter side is at most this when all is
            moved and resized are left out; see `drop_small`. YOLOX 0.1: 8.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    zoom_range: tuple[float, float] = (1.0, 1.0)
    hsv: tuple[float, float, float] = (0.0, 0.0, 0.0)
    min_side: float = 0.0


def decode(
    example: Example,
    *,
    exif: Literal["boxes", "always", "never"] = "boxes",
    put_right: PutRight | None = None,
) -> Example:
    """Decodes the file in `image`; an array passes through.

    Args:
        example: as its source gives it.
        exif: when a picture is turned as its EXIF says. By "boxes" unless the
            annotated size fits the unturned picture only: boxes are taken to be
            drawn on the picture that has their size. "always" and "never" are for
            data whose sizes say the other.
        put_right: counts what was done to pictures of unusual kinds.

    Raises:
        UnreadableImage: if the file is corrupt (see `decoding.read`), or of another
            size than annotated, unless that is plainly a mistake in the annotation.
    """
    return decode_share(example, exif=exif, put_right=put_right, wanted=None)[0]


def decode_share(
    example: Example,
    *,
    exif: Literal["boxes", "always", "never"],
    put_right: PutRight | None,
    wanted: Callable[[tuple[int, int]], float] | None,
) -> tuple[Example, float]:
    """As `decode`, but of a JPEG no more of the sides than is `wanted`, as for `decoding.read`.

    Returns:
        The example, whose boxes are still those of the whole picture (see `move_to_share`),
        and the share of the sides that its image has.
    """
    if isinstance(example.image, np.ndarray):
        return example, 1.0
    stored = decoding.read(example.image, name=example.id, put_right=put_right, wanted=wanted)
    turned, unturned = (stored.turned(), stored.turned_size()), (stored.pixels, stored.size)
    allowed = {"boxes": (turned, unturned), "always": (turned,), "never": (unturned,)}
    for image, size in allowed[exif]:
        if size == tuple(example.size):
            return example._replace(image=image), stored.share
    if stored.orientation == 1 and is_wrong_size(example, stored.size):
        (put_right or PutRight()).add(example.id, "annotated with a wrong size: its own is taken")
        return example._replace(image=stored.pixels, size=stored.size), stored.share
    (height, width), (own_height, own_width) = example.size, stored.size
    shown = ""
    if stored.orientation > 1:
        turned_height, turned_width = stored.turned_size()
        shown = f", turned by EXIF {turned_height} x {turned_width} (data.exif={exif})"
    raise UnreadableImage(
        f"{example.id}: annotated as {height} x {width} (height x width), "
        f"but the image is {own_height} x {own_width}{shown}"
    )


def move_to_share(example: Example, share: float) -> Example:
    """Boxes and proposals of a whole picture on an image that has a share of its sides."""
    return example if share == 1 else _move(example, lambda boxes: boxes * share)


def is_wrong_size(example: Example, size: tuple[int, int]) -> bool:
    """Whether a picture's annotated size is a mistake, its own being the one that boxes are for.

    A size of the same shape is none: the picture was resized after it was annotated. Nor is
    one that the boxes need.
    """
    (height, width), (own_height, own_width) = example.size, size
    if (height, width) == (own_height, own_width):
        return False
    same_shape = abs(width * own_height - height * own_width) <= max(own_height, own_width)
    inside = np.all(example.boxes <= np.array([own_width, own_height] * 2) + 1)
    return bool(inside) and not same_shape


def clean(example: Example) -> Example:
    """Clips boxes to the image and leaves out those that training cannot use.

    A box is kept where its object's `area` is above 0, and at least one pixel
    of width and height lies in the image; one with NaN is not. mmdetection
    measures the sides before it clips. Evaluation counts all boxes. Proposals
    are clipped, and kept by their sides.

    Args:
        example: as its source gives it; the image need not be decoded.
    """
    example = _clip(example, example.size)
    return select(example, has_pixel(example.boxes) & (example.area > 0))


def fit_scale(size: tuple[int, int], *, short: int, long: int, canvas: tuple[int, int]) -> float:
    """The largest scale at which an image keeps to its limits.

    Args:
        size: (height, width) of the image.
        short: what its shorter side becomes, unless another limit comes first.
        long: upper bound of its longer side.
        canvas: (height, width) that it must fit into.
    """
    height, width = size
    return min(short / min(size), long / max(size), canvas[0] / height, canvas[1] / width)


def resize(example: Example, scale: float, rule: str = "rounded") -> Example:
    """Resizes the image to whole sides, and boxes and proposals exactly with it.

    Each axis scales its boxes by its own ratio of the whole sides. Bilinear
    as in the reference systems; "rounded" takes area averages below half size,
    where bilinear skips pixels.

    Args:
        example: decoded.
        scale: new pixels per old one.
        rule: one of `types.RESIZE_RULES`. "rounded" rounds sides and pixels;
            "torchvision" rounds sides down and leaves pixels floats, as that does.
    """
    height, width = example.image.shape[:2]
    whole = int if rule == "torchvision" else round
    new_height, new_width = (max(1, whole(side * scale)) for side in (height, width))
    if (new_height, new_width) == (height, width):
        return example
    if rule == "torchvision":
        image = bilinear(example.image, (new_height, new_width))
    else:
        method = cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR
        image = cv2.resize(example.image, (new_width, new_height), interpolation=method)
    ratios = np.array([new_width / width, new_height / height] * 2)
    limits = [new_width, new_height] * 2
    return _move(example._replace(image=image), lambda boxes: np.minimum(boxes * ratios, limits))


def random_zoom(
    example: Example,
    rng: np.random.Generator,
    *,
    zoom_range: tuple[float, float],
    share: float = 1.0,
) -> tuple[Example, float]:
    """Draws the zoom of `Augmentation`, and above 1 cuts a window of that part out at random.

    Boxes are clipped to the window. An object of which less than
    `MIN_VISIBLE` of the box is left, is left out: it can hardly be told. Of
    crowds all that is left stays: it is to be ignored, however little.
    Proposals are clipped, and kept where a pixel of the whole picture is left.

    Args:
        example: decoded.
        rng: of the draws.
        zoom_range: see `Augmentation`.
        share: of the picture's sides that its image has, as from `decode_share`.

    Returns:
        The example, not resized yet, and the factor for its resize scale.
    """
    zoom = float(np.exp(rng.uniform(*np.log(zoom_range))))
    if zoom <= 1:
        return example, zoom
    sides = np.array(example.image.shape[:2])
    height, width = np.maximum(1, (sides / zoom).astype(int))
    zoom = min(zoom, *(sides / [height, width]).tolist())  # A window is no less than a pixel.
    top, left = rng.integers(0, sides - [height, width], endpoint=True)
    image = example.image[top : top + height, left : left + width]
    corner = np.array([left, top, left, top], np.float32)
    moved = _move(example._replace(image=image), lambda boxes: boxes - corner)
    cut = _clip(moved, (height, width), share)
    keep = areas(cut.boxes) >= MIN_VISIBLE * areas(example.boxes)
    return select(cut, keep | crowds_left(cut)), zoom


def flip_horizontal(example: Example) -> Example:
    """Mirrors left and right."""
    width = example.image.shape[1]

    def mirror(boxes):
        x1, y1, x2, y2 = boxes.T
        return np.stack([width - x2, y1, width - x1, y2], axis=1)

    return _move(example._replace(image=cv2.flip(example.image, 1)), mirror)


def flip_vertical(example: Example) -> Example:
    """Mirrors top and bottom."""
    height = example.image.shape[0]

    def mirror(boxes):
        x1, y1, x2, y2 = boxes.T
        return np.stack([x1, height - y2, x2, height - y1], axis=1)

    return _move(example._replace(image=cv2.flip(example.image, 0)), mirror)


def augment(example: Example, rng: np.random.Generator, *, settings: Augmentation) -> Example:
    """Flips and colours a decoded example at random; where it colours floats, they are rounded."""
    if rng.random() < settings.horizontal_flip:
        example = flip_horizontal(example)
    if rng.random() < settings.vertical_flip:
        example = flip_vertical(example)
    amounts = np.array([settings.brightness, settings.contrast, settings.saturation])
    if np.any(amounts > 0):
        brightness, contrast, saturation = rng.uniform(1 - amounts, 1 + amounts)
        image = colour.scale_colour(
            _as_bytes(example.image),
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
        )
        example = example._replace(image=image)
    if np.any(np.array(settings.hsv) > 0):
        factors = 1 + rng.uniform(-1, 1, 3) * settings.hsv
        image = colour.scale_hsv(_as_bytes(example.image), factors)
        example = example._replace(image=image)
    return example


def drop_small(example: Example, min_side: float) -> Example:
    """Leaves out objects whose shorter side is at most `min_side` pixels; with 0, none.

    Crowds stay, however small. An image of which no object is left trains as
    background; YOLOX takes it unaltered then, with all of its objects.

    Reference: YOLOX 0.1, TrainTransform (8 pixels; later versions 1).
    """
    if min_side <= 0:
        return example
    sides = example.boxes[:, 2:] - example.boxes[:, :2]
    return select(example, example.crowd | (sides.min(axis=1) > min_side))


def crowds_left(example: Example) -> Bool[np.ndarray, " N"]:
    """Which objects are crowds with anything left of their clipped box.

    Where objects are left out because little of them is left, these stay: else what is
    to be ignored would train as background.
    """
    return example.crowd & (areas(example.boxes) > 0)


def limit_objects(example: Example, max_boxes: int) -> tuple[Example, int]:
    """Keeps the `max_boxes` largest objects, real ones before crowds, in their own order.

    Returns:
        The example and the number of objects left out.
    """
    spare = len(example.labels) - max_boxes
    if spare <= 0:
        return example, 0
    order = np.lexsort((-areas(example.boxes), example.crowd))
    return select(example, np.sort(order[:max_boxes])), spare


def select(example: Example, keep: np.ndarray) -> Example:
    """The example with those objects that a mask, or an array of their places, tells."""
    return example._replace(**{name: getattr(example, name)[keep] for name in OBJECT_FIELDS})


def has_pixel(boxes: Float[np.ndarray, "N 4"]) -> Bool[np.ndarray, " N"]:
    """Whether boxes are a pixel wide and high, at least; those with NaN are not."""
    return np.all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=1)


def areas(boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """Square pixels of boxes."""
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _as_bytes(image):
    return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


def _move(example: Example, change: Callable[[np.ndarray], np.ndarray]) -> Example:
    """Boxes and proposals take one path: both go through `change`."""
    moved = example._replace(boxes=change(example.boxes).astype(np.float32))
    if example.proposals is None:
        return moved
    return moved._replace(proposals=change(example.proposals).astype(np.float32))


def _clip(example, size, share=1.0):
    """Clips to an image of `size`; drops proposals, but no objects, of which no pixel is left.

    Pixels are the whole picture's, of whose sides the image has a `share`.
    """
    height, width = size
    example = _move(example, lambda boxes: np.clip(boxes, 0, [width, height, width, height]))
    if example.proposals is None:
        return example
    keep = has_pixel(example.proposals / share)
    return example._replace(
        proposals=example.proposals[keep], proposal_scores=example.proposal_scores[keep]
    )
