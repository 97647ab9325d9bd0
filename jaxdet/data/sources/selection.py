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
        """Looks through all annotations once, by `source.has_object` where there is one."""
        self.class_names = source.class_names
        self._source = source
        has_object = getattr(source, "has_object", None)
        if has_object is None:

            def has_object(index, *, use_difficult):
                return shows_object(source[index], use_difficult=use_difficult)

        self._indices = [
            i for i in range(len(source)) if has_object(i, use_difficult=use_difficult)
        ]

    def __len__(self) -> int:
        """The number of images that are left."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` among those left."""
        return self._source[self._indices[index]]


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
