"""Sources made of others: some images of one, or several joined."""

import bisect
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdet.data.sources import selection
from jaxdet.text_files import read_text
from jaxdet.types import Example, Source, UserError


class Part:
    """Some images of a source.

    What the source knows without reading images, this one does, too.

    Attributes:
        class_names: the source's, as the other two.
        category_ids: None where it has none.
        annotated: whether it says what is on its images.
        paths: their files; empty where it has none.
        dropped: see `FileSource`.
    """

    class_names: tuple[str, ...]

    def __init__(self, source: Source, indices: Sequence[int]):
        """Takes the source and the places of the images in it."""
        self.class_names = source.class_names
        self.category_ids = getattr(source, "category_ids", None)
        self.annotated = getattr(source, "annotated", True)
        self._source, self._indices = source, list(indices)
        for name in ("ids", "annotations"):
            if hasattr(source, name):
                setattr(self, name, lambda name=name: self._take(name, getattr(source, name)()))
        # Of sources of files; empty for others.
        paths, dropped = getattr(source, "paths", ()), getattr(source, "dropped", {})
        self.paths = self._take("paths", paths) if len(paths) else []
        self.dropped = {k: dropped[i] for k, i in enumerate(self._indices) if i in dropped}

    def __len__(self) -> int:
        """The number of images."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The example at `index` among them."""
        return self._source[self._indices[index]]

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn; see `selection.has_object`."""
        own = self._indices[index]
        return selection.has_object(self._source, own, use_difficult=use_difficult)

    def _take(self, name: str, values: Sequence[Any]) -> list[Any]:
        check_count(name, values, self._source)
        return [values[index] for index in self._indices]


class NonEmpty(Part):
    """The images of a source that show an object to learn; see `selection.shows_object`."""

    def __init__(self, source: Source, *, use_difficult: bool = False):
        """Looks through all annotations once; see `selection.has_object`."""
        if hasattr(source, "annotations"):
            shown = selection.show_objects(source.annotations(), use_difficult=use_difficult)
        else:
            ask = functools.partial(selection.has_object, source, use_difficult=use_difficult)
            shown = [ask(index) for index in range(len(source))]
        super().__init__(source, np.flatnonzero(shown).tolist())


class Joined:
    """Images of several sources, one source behind the other.

    The images of the k-th have the id "k/id", so that no two are the same.

    Attributes:
        class_names: those of all, which must be the same.
        category_ids: likewise; None where they differ.
        annotated: whether all say what is on their images.
        paths: their files; empty where one has none.
        dropped: see `FileSource`.
    """

    class_names: tuple[str, ...]

    def __init__(self, sources: Sequence[Source]):
        """Takes the sources, one at least.

        Raises:
            UserError: if there is none, or their classes differ: open them with the same
                `classes`.
        """
        if not sources:
            raise UserError("sources that are joined want one at least, found none")
        self.class_names = tuple(sources[0].class_names)
        for number, source in enumerate(sources):
            if tuple(source.class_names) != self.class_names:
                raise UserError(
                    f"sources that are joined want the same classes: {', '.join(self.class_names)} "
                    f"of the first, found {', '.join(source.class_names)} of number {number + 1}"
                )
        self.annotated = all(getattr(source, "annotated", True) for source in sources)
        numbers = [getattr(source, "category_ids", None) for source in sources]
        self.category_ids = numbers[0] if numbers.count(numbers[0]) == len(numbers) else None
        self._sources = tuple(sources)
        self._ends = list(itertools.accumulate(map(len, sources)))
        paths = [getattr(source, "paths", ()) for source in sources]
        self.paths = list(itertools.chain(*paths)) if all(map(len, paths)) else []
        self.dropped = {
            start + place: labels
            for start, source in zip([0, *self._ends], sources, strict=False)
            for place, labels in getattr(source, "dropped", {}).items()
        }
        if all(hasattr(source, "ids") for source in sources):
            self.ids = lambda: self._join(lambda k, s: [f"{k}/{i}" for i in s.ids()])
        if all(hasattr(source, "annotations") for source in sources):
            self.annotations = lambda: self._join(
                lambda k, s: [each._replace(id=f"{k}/{each.id}") for each in s.annotations()]
            )

    def __len__(self) -> int:
        """The number of images of all."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """The example at `index`.

        Raises:
            IndexError: at the end.
        """
        number, place = self._find(index)
        example = self._sources[number][place]
        return example._replace(id=f"{number}/{example.id}")

    def has_object(self, index: int, *, use_difficult: bool = False) -> bool:
        """Whether the image shows an object to learn; see `selection.has_object`."""
        number, place = self._find(index)
        return selection.has_object(self._sources[number], place, use_difficult=use_difficult)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _join(self, of: Callable[[int, Source], list]) -> list[Any]:
        return list(itertools.chain(*(of(k, s) for k, s in enumerate(self._sources))))


def check_count(name: str, values: Sequence[Any], source: Source) -> None:
    """Looks whether there is one for each image; what is too few would lose images.

    Raises:
        UserError: if there is not.
    """
    if len(values) != len(source):
        raise UserError(
            f"a source wants one of its {name} for each image, found {len(values)} for "
            f"{len(source)} images"
        )


def hash_of(image_id: str | int) -> float:
    """A number in [0, 1) for an id, the same for ever.

    The first 8 bytes of the SHA-256 of the id's text in UTF-8, the first one the highest,
    over 2**64. Of a file whose name is no UTF-8 they are its name's own bytes.
    """
    digest = hashlib.sha256(str(image_id).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def divide(
    source: Source, *, fraction: float = 0.0, every: int = 0, listed: str = ""
) -> tuple[Source, Source]:
    """What is learnt of a source, and what is held out; one of the three settings says which.

    Args:
        source: the examples.
        fraction: images whose `hash_of` their id is below this are held out. Whichever
            other images there are, so that a data set can grow.
        every: the first of so many images is, by the order of the source.
        listed: a text file with an id a line; these are.

    Raises:
        UserError: if one of the two has no image, two images have one id, or the file
            lists an id that the source lacks.
    """
    ids = source.ids() if hasattr(source, "ids") else [source[i].id for i in range(len(source))]
    check_count("ids", ids, source)
    twice, times = next(iter(Counter(map(str, ids)).most_common(1)), ("", 0))
    if times > 1:
        raise UserError(f"{times} images have the id {twice!r}: which is held out is not known")
    if listed:
        held = _listed(Path(listed), set(map(str, ids)))
        chosen = [str(image_id) in held for image_id in ids]
    elif every:
        chosen = [place % every == 0 for place in range(len(ids))]
    else:
        chosen = [hash_of(image_id) < fraction for image_id in ids]
    parts = [[i for i, held in enumerate(chosen) if held == which] for which in (False, True)]
    if not all(parts):
        what = "learnt" if parts[1] else "held out"
        raise UserError(f"no image is {what} of {len(ids)}: another part wants to be held out")
    return Part(source, parts[0]), Part(source, parts[1])


def _listed(path: Path, known: set[str]) -> set[str]:
    if not path.is_file():
        raise UserError(f"data.val_list: there is no file {path}")
    lines = {line.strip() for line in read_text(path).splitlines() if line.strip()}
    unknown = sorted(lines - known)
    if unknown:
        some = ", ".join(map(repr, sorted(known)[:3]))
        raise UserError(f"{path}: wants ids of images, such as {some}; found {unknown[0]!r}")
    return lines
