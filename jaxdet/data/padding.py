"""Batches of fixed size: made blank, and filled row by row."""

import numpy as np

from jaxdet.data import transforms
from jaxdet.data.decoding import FILL
from jaxdet.types import RESIZE_RULES, Batch, Example, Images, Proposals


def blank_images(
    rows: int, canvas: tuple[int, int], max_proposals: int, resize_rule: str = "rounded"
) -> Images:
    """Grey canvases; their size is the whole canvas, so that no detector divides by 0.

    Detectors overwrite what is beside an image, but a batch that is resized before
    mixes its last row and column with it: grey is what mosaics have there, too.

    Args:
        rows: B.
        canvas: (height, width).
        max_proposals: P, or 0 for none.
        resize_rule: of what will be written, which decides on the type of the pixels.
    """
    return Images(
        pixels=np.full((rows, *canvas, 3), FILL, RESIZE_RULES[resize_rule]),
        sizes=np.tile(np.array(canvas, np.int32), (rows, 1)),
        scales=np.ones(rows, np.float32),
        proposals=_blank_proposals(rows, max_proposals) if max_proposals else None,
    )


def blank_batch(
    rows: int,
    canvas: tuple[int, int],
    max_boxes: int,
    max_proposals: int,
    resize_rule: str = "rounded",
) -> Batch:
    """Grey canvases without objects; see `blank_images`. G is `max_boxes`."""
    return Batch(
        images=blank_images(rows, canvas, max_proposals, resize_rule),
        boxes=np.zeros((rows, max_boxes, 4), np.float32),
        labels=np.zeros((rows, max_boxes), np.int32),
        valid=np.zeros((rows, max_boxes), bool),
        crowd=np.zeros((rows, max_boxes), bool),
        index=np.zeros(rows, np.uint32),
    )


def fit_image(
    images: Images,
    row: int,
    example: Example,
    resize: tuple[int | tuple[int, ...], int],
    resize_rule: str = "rounded",
) -> None:
    """Resizes a decoded image to its limits and the canvas, and writes it into a blank row.

    Args:
        images: changed in place.
        row: the place.
        example: decoded; its proposals are clipped.
        resize: (short, long) sides; of several short sides the largest counts.
        resize_rule: see `transforms.resize`.
    """
    scale = transforms.fit_scale(
        example.image.shape[:2],
        short=int(max(np.atleast_1d(resize[0]))),
        long=resize[1],
        canvas=images.pixels.shape[1:3],
    )
    resized = transforms.resize(transforms.clean(example), scale, resize_rule)
    write_image(images, row, resized, scale)


def write_image(images: Images, row: int, example: Example, scale: float) -> None:
    """Writes pixels and, where there are slots for them, the best proposals into a blank row.

    Args:
        images: changed in place.
        row: the place.
        example: resized, and not larger than the canvas.
        scale: canvas pixels per original pixel.
    """
    height, width = example.image.shape[:2]
    images.pixels[row, :height, :width] = example.image
    images.sizes[row] = height, width
    images.scales[row] = scale
    if images.proposals is not None:
        boxes, scores, valid = (field[row] for field in images.proposals)
        count = min(len(example.proposals), len(valid))
        boxes[:count] = example.proposals[:count]
        scores[:count] = example.proposal_scores[:count]
        valid[:count] = True


def write_objects(batch: Batch, row: int, example: Example, place: int) -> None:
    """Writes objects, at most G, into a blank row, and the row's place in the order of the run."""
    count = len(example.labels)
    batch.boxes[row, :count] = example.boxes
    batch.labels[row, :count] = example.labels
    batch.valid[row, :count] = ~example.crowd
    batch.crowd[row, :count] = example.crowd
    batch.index[row] = place % 2**32


def _blank_proposals(rows, max_proposals):
    return Proposals(
        boxes=np.zeros((rows, max_proposals, 4), np.float32),
        scores=np.zeros((rows, max_proposals), np.float32),
        valid=np.zeros((rows, max_proposals), bool),
    )
