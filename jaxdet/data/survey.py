"""A whole data set looked through: each object, each picture, and what is there twice."""

import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jaxdet.data import transforms
from jaxdet.data.decoding import PutRight, UnreadableImage
from jaxdet.data.inventory import REASONS, Inventory, Judged
from jaxdet.types import Example, Source

_AT_ONCE = 1024  # Pictures given to the threads: a future for each of a million takes memory.
_FAULTS = tuple(reason for reason in REASONS if reason not in ("crowd", "difficult"))
UNREADABLE, PUT_RIGHT = "unreadable pictures", "pictures put right"
OVER_EDGE, TWICE = "boxes over an edge", "boxes annotated twice"
SAME, SHARED = "pictures that are there twice", "pictures in several splits"
SAME_NAME = "file names in several splits"


class Note(NamedTuple):
    """Something to look at in a data set: of what kind, in which split and file, and what."""

    kind: str
    split: str
    file: str
    text: str


class Picture(NamedTuple):
    """What looking at a picture told.

    Attributes:
        example: its annotation, of the size that it really has, without pixels; empty where
            it cannot be read and its source knows nothing without reading it.
        digest: of its file, or, where the source gives no file, of its pixels; empty where
            there is none.
        trouble: why it cannot be read; empty where it can.
        done: what was put right to read it.
    """

    example: Example
    digest: bytes
    trouble: str
    done: tuple[str, ...]


class Split(NamedTuple):
    """What one split holds.

    Attributes:
        name: of the split.
        source: its examples.
        files: what its images are called.
        pictures: what looking at them told; empty where they were not looked at.
        judged: its objects.
        counts: of them.
    """

    name: str
    source: Source
    files: Sequence[str]
    pictures: Sequence[Picture]
    judged: Judged
    counts: Inventory


def look(source: Source, *, exif: str, threads: int, name: str) -> list[Picture]:
    """Reads and decodes every picture of a source.

    Args:
        source: the examples.
        exif: as for `transforms.decode`.
        threads: pictures that are decoded at once.
        name: of the split, for the progress bar.
    """
    known = source.annotations() if hasattr(source, "annotations") else [None] * len(source)

    def one(index):
        return _look(source, index, known[index], exif)

    found: list[Picture] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        # On a terminal only.
        tqdm(total=len(source), desc=f"pictures of {name}", disable=None, leave=False) as bar,
    ):
        for start in range(0, len(source), _AT_ONCE):
            for picture in pool.map(one, range(start, min(start + _AT_ONCE, len(source)))):
                found.append(picture)
                bar.update()
    return found


def name_files(source: Source, examples: Sequence[Example]) -> list[str]:
    """What each image is called: its file, or its id where the source has no files."""
    named = getattr(source, "paths", None)
    return [str(path) for path in named] if named else [str(each.id) for each in examples]


def find_faults(split: Split) -> Iterator[Note]:
    """What is wrong with the objects of each image."""
    judged, size = split.judged, len(split.files)
    masks = {reason: judged.reason == REASONS.index(reason) for reason in _FAULTS}
    masks = {f"objects: {reason}": mask for reason, mask in masks.items()}
    masks |= {OVER_EDGE: judged.over_edge, TWICE: find_twice(judged)}
    dropped = np.zeros(size, int)
    for image, labels in getattr(split.source, "dropped", {}).items():
        dropped[image] = len(labels)
    of_image = np.bincount(judged.image, minlength=size) + dropped
    for kind, mask in masks.items():
        counts = np.bincount(judged.image[mask], minlength=size)
        counts += dropped if kind == f"objects: {_FAULTS[0]}" else 0
        for i in np.flatnonzero(counts):
            yield Note(kind, split.name, split.files[i], f"{counts[i]} of {of_image[i]}")


def find_twice(judged: Judged) -> np.ndarray:
    """Which objects repeat one before on the same image, of the same class and box: (N,)."""
    rows = [judged.image, judged.labels, *judged.boxes.T]
    order = np.lexsort(rows[::-1])  # The first row decides first; equal ones stay in order.
    same = np.ones(max(len(order) - 1, 0), bool)
    for row in rows:
        same &= np.diff(row[order]) == 0
    found = np.zeros(len(order), bool)
    found[order[1:]] = same
    return found


def find_troubles(split: Split) -> Iterator[Note]:
    """What is wrong with the pictures themselves."""
    for picture, file in zip(split.pictures, split.files, strict=True):
        if picture.trouble:
            yield Note(UNREADABLE, split.name, file, picture.trouble)
        for done in picture.done:
            yield Note(PUT_RIGHT, split.name, file, done)


def find_same(
    keys: Mapping[str, Sequence[str | bytes]], files: Mapping[str, Sequence[str]], shared: str
) -> Iterator[Note]:
    """Pictures with one key: a note for each that is there already, in its split or one before.

    Args:
        keys: of the pictures of each split; an empty one is nobody's.
        files: what they are called.
        shared: the kind of those that are in several splits.
    """
    first: dict[str | bytes, dict[str, str]] = collections.defaultdict(dict)
    for split, own in keys.items():
        for key, file in zip(own, files[split], strict=True):
            if not key:
                continue
            if split in first[key]:
                yield Note(SAME, split, file, f"as {first[key][split]}")
                continue
            for other, before in first[key].items():
                yield Note(shared, split, file, f"as {before} of {other}")
            first[key][split] = file


def _look(source: Source, index: int, known: Example | None, exif: str) -> Picture:
    digest, put_right = b"", PutRight()
    try:
        example = source[index]
        image = example.image
        # Pixels may be a view, such as turned from BGR to RGB.
        image = np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image
        digest = hashlib.blake2b(image, digest_size=16).digest()
        example = transforms.decode(example, exif=exif, put_right=put_right)
    except (UnreadableImage, OSError) as error:
        return Picture(known or _blank(index), digest, " ".join(str(error).split()), ())
    return Picture(example._replace(image=b""), digest, "", tuple(put_right.counts))


def _blank(index: int) -> Example:
    none = np.zeros(0)
    flags = none.astype(bool)
    boxes, labels = np.zeros((0, 4), np.float32), none.astype(np.int32)
    return Example(f"image {index}", b"", boxes, labels, flags, flags, none, (0, 0))
