"""A source of the user's own, of which nothing is believed before it was looked at."""

import contextlib
import importlib
import os
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.data.decoding import UnreadableImage
from jaxdet.data.sources.parts import Part
from jaxdet.data.sources.selection import shows_object
from jaxdet.types import Example, Source, UserError

# Of each array: its shape behind the number of objects, kinds of numbers as NumPy has them.
_FIELDS = {
    "boxes": ((4,), "fiu", "numbers"),
    "labels": ((), "iu", "whole numbers"),
    "crowd": ((), "b", "bool"),
    "difficult": ((), "b", "bool"),
    "area": ((), "fiu", "numbers"),
}


class Checked(Part):
    """A source all of whose examples are what `Example` says; what is not, is a line.

    An image that cannot be read may be an OSError or an `UnreadableImage`; it is counted when
    it is needed. All else that is raised names the image and the line of the user's file.
    """

    def __init__(self, source: Any, said: str):
        """Looks at the names of the classes, and what else is known without an image.

        Args:
            source: the user's.
            said: how messages begin.

        Raises:
            UserError: for what is wrong with it.
        """
        self._said, self._looked = said, False
        with explained(said):
            _check_classes(source, said)
            super().__init__(source, range(len(source)))
        self.class_names = tuple(source.class_names)
        for name in ("ids", "annotations"):
            if hasattr(self, name):
                setattr(self, name, partial(self._ask, name))

    def __getitem__(self, index: int) -> Example:
        """The example at `index`.

        Raises:
            UserError: if it is none.
            OSError: if it cannot be read, or an UnreadableImage.
        """
        place = self._indices[index]  # An IndexError at the end is no mistake.
        with explained(f"{self._said}: image {place}", but=(OSError, UnreadableImage)):
            example = self._source[place]
            self._check(example)
            _check_picture(example, f"{self._said}: image {example.id!r:.80}")
        return example

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn; see `selection.has_object`."""
        if not hasattr(self._source, "has_object"):
            return shows_object(self[index], use_difficult=use_difficult)
        with explained(f"{self._said}: image {index}: has_object"):
            return bool(super().has_object(index, use_difficult=use_difficult))

    def _ask(self, name: str) -> list[Any]:
        with explained(f"{self._said}: {name}"):
            found = self._take(name, getattr(self._source, name)())
            if name == "annotations" and not self._looked:
                for example in found:
                    self._check(example)
                self._looked = True
        return found

    def _check(self, example: Any) -> None:
        if not isinstance(example, Example):
            found = type(example).__name__
            raise UserError(
                f"{self._said}: wants jaxdet.types.Example for each image, found {found}"
            )
        said = f"{self._said}: image {example.id!r:.80}"
        if not isinstance(example.labels, np.ndarray) or example.labels.ndim != 1:
            raise UserError(f"{said}: labels wants an array (n,), found {example.labels!r:.80}")
        count = len(example.labels)
        for name, (tail, kinds, meaning) in _FIELDS.items():
            value, shape = getattr(example, name), (count, *tail)
            if not isinstance(value, np.ndarray) or value.shape != shape:
                found = value.shape if isinstance(value, np.ndarray) else f"{value!r:.80}"
                raise UserError(f"{said}: {name} wants an array {shape}, found {found}")
            if value.dtype.kind not in kinds:
                raise UserError(f"{said}: {name} wants {meaning}, found {value.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.column_stack([example.boxes, example.area]).astype(np.float32)
            sides = numbers[:, 2:4] - numbers[:, :2]
            # What is infinite then was no place in a picture.
            finite = np.isfinite([*numbers.T, *sides.T, sides[:, 0] * sides[:, 1]]).all(axis=0)
        if not finite.all():
            found = numbers[~finite][0].tolist()
            raise UserError(
                f"{said}: a box, its sides and its area want finite numbers, found {found}"
            )
        classes, labels = len(self.class_names), example.labels
        if count and not 0 <= labels.min() <= labels.max() < classes:
            found = labels.tolist()[:9]
            raise UserError(f"{said}: labels want whole numbers below {classes}, found {found}")
        size = np.asarray(example.size)
        if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < 0:
            raise UserError(f"{said}: size wants (height, width), found {example.size!r:.80}")


@contextlib.contextmanager
def explained(said: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Makes all that is raised a UserError of one line, with the line of the user's file.

    Args:
        said: how it begins.
        but: what passes as it is, as UserErrors do.
    """
    try:
        yield
    except (UserError, *but):
        raise
    except Exception as error:
        raise UserError(f"{said}: {_explain(error)}") from error


def _explain(error: Exception) -> str:
    """What went wrong, with the line of the user's file where it was in one."""
    skipped = (str(Path(__file__).parents[2]), os.path.dirname(importlib.__file__), "<")
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if not frame.filename.startswith(skipped)]
    # What the user's file calls may fail deep in another library.
    frames = [frame for frame in frames if frame.filename == frames[0].filename]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason}{place}"


def _check_classes(source: Any, said: str) -> None:
    """Looks whether it is a source, and at its classes and their numbers."""
    if not isinstance(source, Source) or isinstance(source, list | tuple | str):
        found = type(source).__name__
        raise UserError(f"{said} wants to give a source (docs/data.md), found {found}")
    names = source.class_names
    named = isinstance(names, tuple | list) and all(isinstance(each, str) for each in names)
    if not named or not names:
        raise UserError(f"{said}: class_names wants a tuple of names, found {names!r:.80}")
    if len(set(names)) < len(names):
        raise UserError(f"{said}: class_names names a class twice: {', '.join(names)}")
    numbers = getattr(source, "category_ids", None)
    if numbers is not None and len(numbers) != len(names):
        raise UserError(
            f"{said}: category_ids wants one for each of {len(names)} classes, "
            f"found {numbers!r:.80}"
        )


def _check_picture(example: Example, said: str) -> None:
    image, shape = example.image, (*example.size, 3)
    if isinstance(image, np.ndarray):
        if image.shape != shape or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}"
            raise UserError(f"{said}: image wants RGB pixels uint8 {shape}, found {found}")
    elif not isinstance(image, bytes):
        raise UserError(f"{said}: image wants bytes of a file or an array, found {image!r:.80}")
