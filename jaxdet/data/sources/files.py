"""A source whose images are files and whose annotations are held in memory."""

import logging
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jaxdet.data.sources.selection import shows_object
from jaxdet.types import Example, UserError

# One pixel, less the rounding error of boxes that were stored as fractions.
MIN_SIDE = 0.999


@dataclass(frozen=True)
class FileSource:
    """Annotated image files; reading an example reads one file.

    Attributes:
        class_names: name of each label.
        examples: the annotations, with `image` empty.
        paths: the image file of each example.
        dropped_boxes: number of annotated boxes that were left out.
        category_ids: the annotation file's own number of each label, where it has one.
    """

    class_names: tuple[str, ...]
    examples: Sequence[Example]
    paths: Sequence[pathlib.Path]
    dropped_boxes: int = 0
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, with the bytes of its file.

        Raises:
            OSError: if the file cannot be read.
        """
        return self.examples[index]._replace(image=self.paths[index].read_bytes())

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn; reads no file."""
        return shows_object(self.examples[index], use_difficult=use_difficult)


def clean_boxes(
    boxes: Float[np.ndarray, "n 4"], *, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Clips boxes to the image and tells which of them are worth keeping.

    Args:
        boxes: [x1, y1, x2, y2] in pixels of the image; may hold anything, NaN too.
        size: (height, width) of the image.

    Returns:
        The clipped boxes as float32, and True where at least one pixel of
        width and height is left.
    """
    height, width = size
    clipped = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    return clipped, np.all(sides >= MIN_SIDE, axis=1)


def label_indices(
    names: Sequence[str], class_names: tuple[str, ...], *, where: object
) -> list[int]:
    """Looks up class names.

    Args:
        names: the names found in an annotation.
        class_names: the known ones, in the order of their labels.
        where: the file that names them, for the message.

    Raises:
        UserError: for a name that is not known.
    """
    for name in names:
        if name not in class_names:
            raise UserError(
                f"{where}: unknown class {name!r}; data.classes has {', '.join(class_names)}"
            )
    return [class_names.index(name) for name in names]


def report_dropped(where: object, dropped: int, total: int) -> None:
    """Logs how many boxes were left out, if any."""
    if dropped:
        logging.getLogger("jaxdet").warning(
            "%s: dropped %d of %d boxes, which are empty or outside their image",
            where,
            dropped,
            total,
        )
