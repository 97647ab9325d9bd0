"""A source whose images are files and whose annotations are held in memory."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int, Num

from jaxdet.data.sources.selection import find_usable, shows_object
from jaxdet.data.sources.several import SeveralMistakes
from jaxdet.types import Example, UserError


@dataclass(frozen=True)
class FileSource:
    """Annotated image files; reading an example reads one file.

    Attributes:
        class_names: name of each label.
        examples: the annotations, with `image` empty.
        paths: the image file of each example.
        category_ids: number of each label in the files, None where they have none.
        annotated: whether the files say what is on the images, if only that it
            is nothing; else they are for predictions alone.
        dropped: labels of boxes that mark no object and are in no example, by the
            place of their image.
    """

    class_names: tuple[str, ...]
    examples: Sequence[Example]
    paths: Sequence[pathlib.Path]
    category_ids: tuple[int, ...] | None = None
    annotated: bool = True
    dropped: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, with the bytes of its file.

        Raises:
            OSError: if the file cannot be read.
        """
        return self.examples[index]._replace(image=self.paths[index].read_bytes())

    def ids(self) -> list[str | int]:
        """The id of each image, in order; reads no file."""
        return [example.id for example in self.examples]

    def annotations(self) -> Sequence[Example]:
        """The examples without their images; reads no file."""
        return self.examples

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn; reads no file."""
        return shows_object(self.examples[index], use_difficult=use_difficult)


def label_indices(
    names: Sequence[str], class_names: tuple[str, ...], *, where: object
) -> list[int]:
    """Looks up class names.

    Args:
        names: the names found in an annotation.
        class_names: the known ones, in the order of their labels.
        where: the file that names them, for the message.

    Raises:
        SeveralMistakes: for names that are not known, a line for each.
    """
    unknown = [name for name in dict.fromkeys(names) if name not in class_names]
    if unknown:
        known = ", ".join(map(repr, class_names))
        raise SeveralMistakes(
            [f"{where}: unknown class {name!r}; data.classes has {known}" for name in unknown]
        )
    return [class_names.index(name) for name in names]


def check_distinct(where: object, ids: Sequence[str | int], paths: Sequence[pathlib.Path]) -> None:
    """Refuses one picture with two ids, for what is on it is not known then; and two with one.

    Args:
        where: what names them, for the message.
        ids: of the images; 1 and "1" are one.
        paths: their files.

    Raises:
        UserError: if one is there twice.
    """
    texts = [str(image_id) for image_id in ids]
    for keys, others, what in ((paths, texts, "are one picture"), (texts, paths, "have one id")):
        first: dict[object, object] = {}
        for key, other in zip(keys, others, strict=True):
            if key in first:
                raise UserError(f"{where}: {first[key]} and {other} {what}, {key}")
            first[key] = other


def to_example(
    image_id: str,
    size: tuple[int, int],
    boxes: Num[np.ndarray, "N 4"],
    labels: Sequence[int] | Int[np.ndarray, " N"],
    difficult: Bool[np.ndarray, " N"] | None = None,
) -> Example:
    """An annotated image without its bytes, no object of which is a crowd; areas are the boxes'."""
    boxes = boxes.astype(np.float32)
    return Example(
        id=image_id,
        image=b"",
        boxes=boxes,
        labels=np.array(labels, np.int32),
        crowd=np.zeros(len(boxes), bool),
        difficult=np.zeros(len(boxes), bool) if difficult is None else difficult,
        area=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64),
        size=size,
    )


def report_unused(where: object, examples: Sequence[Example], total: int) -> None:
    """Logs how many of `total` annotated boxes training will leave out, if any."""
    unused = total - int(find_usable(examples).sum())
    if unused:
        logging.getLogger("jaxdet").warning(
            "%s: training leaves out %d of %d boxes, which are empty or outside their image",
            where,
            unused,
            total,
        )
