"""Several canvases: which there are, and to which of them each image belongs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from jaxdet.types import Source, UserError


def every(
    canvas: Sequence[int], more_canvases: Sequence[Sequence[int]]
) -> tuple[tuple[int, int], ...]:
    """All canvases of `data.canvas` and `data.more_canvases`, the first one first."""
    return (tuple(canvas), *map(tuple, more_canvases))


def kinds_of(
    source: Source,
    canvases: Sequence[tuple[int, int]],
    resize: tuple[int | tuple[int, ...], int],
) -> Int[np.ndarray, " N"]:
    """To which canvas each image of a source belongs, by its annotated size; no image is read.

    Raises:
        UserError: see `check_source`.
    """
    if len(canvases) == 1:
        return np.zeros(len(source), int)
    check_source(source)
    sizes = np.array([each.size for each in source.annotations()]).reshape(-1, 2)
    return fit(sizes, canvases, resize)[0]


def check_source(source: Source) -> None:
    """Refuses a source that does not know how large its images are, for several canvases.

    Raises:
        UserError: if it has no method `annotations`.
    """
    if not hasattr(source, "annotations"):
        raise UserError(
            "data.more_canvases wants a source that knows the sizes of its images without "
            "reading them, by a method `annotations`, which this one lacks: set it to (), and "
            "data.canvas to one that holds all"
        )


def fit(
    sizes: Real[np.ndarray, "N 2"],
    canvases: Sequence[tuple[int, int]],
    resize: tuple[int | tuple[int, ...], int],
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """The canvas on which each image comes out largest, and its scale there.

    Of several the one with the fewest pixels is taken, of those the first.

    Args:
        sizes: (height, width) of each image; 0 for a side that nobody knows.
        canvases: (height, width) of each.
        resize: (short, long) sides as in `transforms.fit_scale`; of several short
            sides the largest counts.

    Returns:
        Places in `canvases`, and canvas pixels per pixel of the image.
    """
    real = np.maximum(sizes[:, None].astype(float), 1)
    short, long = float(np.max(resize[0])), resize[1]
    scales = np.minimum(short / real.min(axis=2), long / real.max(axis=2))
    scales = np.minimum(scales, (np.array(canvases) / real).min(axis=2))
    small_first = np.argsort([height * width for height, width in canvases], kind="stable")
    kinds = small_first[np.argmax(scales[:, small_first], axis=1)]
    return kinds, np.take_along_axis(scales, kinds[:, None], axis=1)[:, 0]
