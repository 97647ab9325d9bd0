"""The sizes of pictures: those that annotations lack, and those that cannot be."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdet.data import decoding, transforms
from jaxdet.data.picture_headers import read_head, read_header
from jaxdet.types import Example

_THREADS = 8  # Pictures that are opened at once; the disk is what takes time.


def fill_sizes(
    sizes: Sequence[tuple[int, int]], paths: Sequence[Path], where: object
) -> list[tuple[int, int]]:
    """The (height, width) of images, the pictures' own where an annotation says none.

    Those are turned as their EXIF says, and (0, 0) where a picture cannot be read. How many
    they are is logged.
    """
    missing = [i for i, size in enumerate(sizes) if min(size) <= 0]
    sizes = list(sizes)
    for i, size in zip(missing, read_sizes([paths[i] for i in missing]), strict=True):
        sizes[i] = size
    if missing:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d images have no width or height there: the pictures' own are taken",
            *(where, len(missing), len(sizes)),
        )
    return sizes


def read_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The (height, width) of pictures as viewers show them; (0, 0) of one that cannot be read.

    How many those are is logged.
    """
    sizes = [seen.size for seen in _look_at(paths)]
    unread = [path for path, size in zip(paths, sizes, strict=True) if not all(size)]
    if unread:
        logging.getLogger("jaxdet").warning(
            "%d of %d pictures cannot be read, such as %s: nothing is learnt of them",
            *(len(unread), len(paths), unread[0]),
        )
    return sizes


def put_sizes_right(
    examples: Sequence[Example], paths: Sequence[Path], where: object
) -> list[Example]:
    """The examples, with the picture's own size where the annotated one is plainly a mistake.

    Only pictures with a box over the edge are opened: elsewhere a wrong size takes nothing
    from an object, and `transforms.decode` puts it right when the picture is read. What is a
    mistake is as there; how many they are is logged.

    Args:
        examples: the annotations.
        paths: the file of each picture.
        where: the annotation file, for the message.
    """
    doubtful = _over_edge(examples)
    examples, wrong = list(examples), 0
    own = _look_at([paths[i] for i in doubtful])
    for i, (size, upright) in zip(doubtful, own, strict=True):
        if upright and transforms.is_wrong_size(examples[i], size):
            examples[i], wrong = examples[i]._replace(size=size), wrong + 1
    if wrong:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d images are annotated with a wrong size, which boxes reach over: the "
            "pictures' own are taken",
            *(where, wrong, len(examples)),
        )
    return examples


class _Seen(NamedTuple):
    size: tuple[int, int]
    upright: bool  # And it can be read.


def _look_at(paths: Sequence[Path]) -> list[_Seen]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_look, paths))


def _look(path: Path) -> _Seen:
    try:
        with open(path, "rb") as file:
            head = read_head(file)
            try:
                size = decoding.size_of(head, name=path)
            except decoding.UnreadableImage:  # What says the size may stand further behind.
                file.seek(0)
                head = file.read()
                size = decoding.size_of(head, name=path)
    except (decoding.UnreadableImage, OSError):
        return _Seen((0, 0), False)
    return _Seen(size, read_header(head).orientation == 1)


def _over_edge(examples: Sequence[Example]) -> list[int]:
    """The places of images with a box that reaches more than a pixel beyond right or bottom."""
    if not examples:
        return []
    image = np.repeat(np.arange(len(examples)), [len(each.boxes) for each in examples])
    ends = np.concatenate([each.boxes for each in examples])[:, 2:]
    limits = np.array([each.size for each in examples])[image, ::-1]
    return np.unique(image[np.any(ends > limits + 1, axis=1)]).tolist()
