"""Which images show an object to learn."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from jaxdet.data import transforms
from jaxdet.types import Example, Source

# Images with a shorter side below this teach nothing; mmdetection leaves them out, too.
MIN_IMAGE_SIDE = 32


def has_object(source: Source, index: int, *, use_difficult: bool = False) -> bool:
    """Whether an image of a source shows an object to learn, as `shows_object` tells.

    A source with a method `has_object(index, *, use_difficult)` is asked, as it
    may know without reading the image.
    """
    ask = getattr(source, "has_object", None)
    if ask is None:
        return shows_object(source[index], use_difficult=use_difficult)
    return ask(index, use_difficult=use_difficult)


def shows_object(example: Example, *, use_difficult: bool = False) -> bool:
    """Whether an image of 32 pixels or more a side shows an object to learn.

    That is one which `transforms.clean` keeps, and which is no crowd and,
    unless those count, not difficult.
    """
    return bool(show_objects([example], use_difficult=use_difficult)[0])


def show_objects(
    examples: Sequence[Example], *, use_difficult: bool = False
) -> Bool[np.ndarray, " N"]:
    """Which images show an object to learn, see `shows_object`; of all at once."""
    counted = find_usable(examples)
    if examples:
        counted &= ~np.concatenate([each.crowd for each in examples])
        if not use_difficult:
            counted &= ~np.concatenate([each.difficult for each in examples])
    image = np.repeat(np.arange(len(examples)), [len(each.labels) for each in examples])
    large = np.array([min(each.size) >= MIN_IMAGE_SIDE for each in examples], bool)
    return large & (np.bincount(image[counted], minlength=len(examples)) > 0)


def find_usable(examples: Sequence[Example]) -> Bool[np.ndarray, " N"]:
    """Which objects of all images, one behind the other, `transforms.clean` keeps.

    Asked one by one, a hundred thousand images take longer than their json does to be read.
    """
    if not examples:
        return np.zeros(0, bool)
    counts = [len(each.labels) for each in examples]
    sizes = np.array([each.size for each in examples])
    limits = np.repeat(sizes[:, [1, 0, 1, 0]], counts, axis=0)
    boxes = np.clip(np.concatenate([each.boxes for each in examples]), 0, limits)
    area = np.concatenate([each.area for each in examples])
    return transforms.has_pixel(boxes.astype(np.float32)) & (area > 0)
