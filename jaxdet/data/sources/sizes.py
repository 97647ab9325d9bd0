"""Annotated sizes that cannot be, before anything is counted by them."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxdet.data import decoding, transforms
from jaxdet.data.picture_headers import read_header
from jaxdet.types import Example

_THREADS = 8  # Pictures that are opened at once; the disk is what takes time.


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
    with ThreadPoolExecutor(_THREADS) as pool:
        own = pool.map(_upright_size, [paths[i] for i in doubtful])
        for i, size in zip(doubtful, own, strict=True):
            if size and transforms.is_wrong_size(examples[i], size):
                examples[i], wrong = examples[i]._replace(size=size), wrong + 1
    if wrong:
        logging.getLogger("jaxdet").warning(
            "%s: %d of %d images are annotated with a wrong size, which boxes reach over: the "
            "pictures' own are taken",
            *(where, wrong, len(examples)),
        )
    return examples


def _over_edge(examples: Sequence[Example]) -> list[int]:
    """The places of images with a box that reaches more than a pixel beyond right or bottom."""
    if not examples:
        return []
    image = np.repeat(np.arange(len(examples)), [len(each.boxes) for each in examples])
    ends = np.concatenate([each.boxes for each in examples])[:, 2:]
    limits = np.array([each.size for each in examples])[image, ::-1]
    return np.unique(image[np.any(ends > limits + 1, axis=1)]).tolist()


def _upright_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of a picture; None where it is turned, or cannot be read."""
    try:
        data = path.read_bytes()
        return decoding.size_of(data, name=path) if read_header(data).orientation == 1 else None
    except (decoding.UnreadableImage, OSError):
        return None
