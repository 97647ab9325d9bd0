"""Part of another source."""

import numpy as np

from jaxdet.data import transforms
from jaxdet.types import Example, Source

# Images with a shorter side below this teach nothing; mmdetection leaves them out, too.
MIN_IMAGE_SIDE = 32


class NonEmpty:
    """The images of a source that show an object to learn; see `shows_object`.

    Attributes:
        class_names: the source's.
    """

    class_names: tuple[str, ...]

    def __init__(self, source: Source, *, use_difficult: bool = False):
        """Looks through all annotations once; see `has_object`."""
        self.class_names = source.class_names
        self._source = source
        self._indices = [
            i for i in range(len(source)) if has_object(source, i, use_difficult=use_difficult)
        ]

    def __len__(self) -> int:
        """The number of images that are left."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` among those left."""
        return self._source[self._indices[index]]


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
    if min(example.size) < MIN_IMAGE_SIDE:
        return False
    example = transforms.clean(example)
    ignored = example.crowd if use_difficult else example.crowd | example.difficult
    return bool(np.any(~ignored))
