"""The images of a training as they reach the detector, and what is drawn of them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jaxdet import visualize
from jaxdet.commands import opening
from jaxdet.commands.opening import Run
from jaxdet.data.decoding import UnreadableImage
from jaxdet.detectors.assigned import Assigned
from jaxdet.ops.assignment import IGNORE, POSITIVE
from jaxdet.training import multiscale
from jaxdet.training.saved import SavedCheckpoints
from jaxdet.types import Batch, UserError

SIDE = 480  # Smaller pictures are enlarged to this longer side,
ASSIGNED_SIDE = 720  # or this, where anchors are shown.
HATCH, LINE_HEIGHT = 14, 19  # Pixels.


class Fed(NamedTuple):
    """An image of a batch.

    Attributes:
        name: its id in the data.
        step: steps done before.
        batch: of this image alone.
        assigned: of this image alone, where it was asked for.
        origin: what decided on that, if weights did.
    """

    name: str
    step: int
    batch: Batch
    assigned: Assigned | None = None
    origin: str = ""


def gather(run: Run, step: int, count: int) -> list[Fed]:
    """The images of a step, and of those behind it where its batch has fewer.

    They are those of the run, bit for bit, each made as the share of one of as many
    processes as a batch has images.

    Args:
        run: see `opening.open_training_data`.
        step: steps done before.
        count: how many images.
    """
    config = run.config
    config.data.num_threads = 1  # None is made beyond the next one.
    order, size = opening.order_of_run(config, run.source), config.batch_size
    fed = []
    for place in range(step * size, step * size + count):
        loader = opening.train_batches(config, run.source, place // size, (place % size, size))
        batch = next(loader)
        loader.close()
        fed.append(Fed(_name(run.source, order, place), place // size, batch))
    if not config.multiscale_heights:
        return fed
    resize = jax.jit(multiscale.resize_batch, static_argnums=1)
    drawn = {"heights": config.multiscale_heights, "every": config.multiscale_every}
    return [
        each._replace(batch=jax.tree.map(np.asarray, resize(each.batch, height)))
        for each in fed
        for height in [multiscale.draw_height(config.seed, each.step, **drawn)]
    ]


def names(run: Run, places: Sequence[int]) -> list[str]:
    """The ids of the images at some places of the run's order."""
    order = opening.order_of_run(run.config, run.source)
    return [_name(run.source, order, place) for place in places]


def draw_batch(run: Run, step: int) -> np.ndarray:
    """All images that a step is fed, with their objects, on one sheet; RGB.

    Args:
        run: see `opening.open_training_data`.
        step: steps done before.
    """
    run = run._replace(config=run.config.copy_and_resolve_references())
    fed = gather(run, step, run.config.batch_size)
    pictures = [draw(each, run.class_names) for each in fed]
    return visualize.grid(pictures, math.ceil(math.sqrt(len(pictures))))


def assign(run: Run, fed: Sequence[Fed], workdir: Path) -> list[Fed]:
    """What the images of each step are assigned to, together, by the detector's own rule.

    Args:
        run: see `opening.open_training_data`.
        fed: from `gather`.
        workdir: whose best checkpoint decides, where weights do and it has one.

    Raises:
        UserError: if the detector does not tell, or the weights do not fit.
    """
    detector, variables, origin = run.detector, run.variables, ""
    if detector.assign is None:
        name = run.config.detector
        raise UserError(f"--assign: {name} has neither anchors nor points to show")
    if jax.eval_shape(detector.assign, variables, fed[0].batch).by_prediction:
        variables, origin = _weights(run, workdir)
        compiled = jax.jit(detector.assign)
    else:
        compiled = jax.jit(lambda _, batch: detector.assign(run.variables, batch))
        variables = None
    done = []
    for _, group in groupby(fed, key=lambda each: each.step):
        group = list(group)
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *[each.batch for each in group])
        found = jax.tree.map(np.asarray, compiled(variables, batch))
        for row, each in enumerate(group):
            own = dataclasses.replace(found, labels=found.labels[row], index=found.index[row])
            done.append(each._replace(assigned=own, origin=origin))
    return done


def draw(fed: Fed, class_names: Sequence[str]) -> np.ndarray:
    """The whole canvas with its objects, and what is said of it below; RGB."""
    row = jax.tree.map(lambda values: values[0], fed.batch)
    pixels = np.clip(np.rint(row.images.pixels), 0, 255).astype(np.uint8)
    side = SIDE if fed.assigned is None else ASSIGNED_SIDE
    factor = max(1.0, side / max(pixels.shape[:2]))
    shape = tuple(round(length * factor) for length in pixels.shape[1::-1])
    picture = cv2.resize(pixels, shape, interpolation=cv2.INTER_CUBIC)
    _hatch(picture, row.images.sizes * factor)
    boxes, colour = row.boxes * factor, None
    if fed.assigned is not None:
        _draw_assigned(picture, fed.assigned, boxes, factor)
        colour = visualize.WHITE
    picture = visualize.draw(
        picture, boxes, row.labels, class_names, valid=row.valid, colour=colour
    )
    for box in boxes[row.crowd]:
        _draw_dashed(picture, box)
    return _with_lines(picture, [fed.name, *_numbers([fed])])


def add_legend(sheet: np.ndarray, fed: Sequence[Fed]) -> np.ndarray:
    """A sheet with a line of the levels' colours on top, where anchors are shown."""
    if fed[0].assigned is None:
        return sheet
    line = np.full((LINE_HEIGHT + 6, sheet.shape[1], 3), visualize.PAPER[0], np.uint8)
    x = 6
    for number, level in enumerate(fed[0].assigned.levels):
        text = f"stride {level.stride}"
        cv2.circle(line, (x + 6, 12), 6, _colour(number), cv2.FILLED, cv2.LINE_AA)
        _write(line, text, (x + 18, 17))
        x += 32 + cv2.getTextSize(text, visualize.FONT, 0.45, 1)[0][0]
    return np.concatenate([line, sheet])


def describe(fed: Sequence[Fed]) -> Iterator[str]:
    """Sentences about all images together."""
    yield from _numbers(fed)
    if fed[0].assigned is None:
        return
    positive = np.stack([each.assigned.labels for each in fed]) == POSITIVE
    first = 0
    for level in fed[0].assigned.levels:
        count = positive[:, first : first + level.count].sum()
        cells = " x ".join(map(str, level.cells))
        yield f"stride {level.stride:>3}: {cells:>9} cells, {level.count:>6}; positive {count:>6}"
        first += level.count
    if fed[0].origin:
        yield f"by the predictions of: {fed[0].origin}"


def counts_of_objects(fed: Fed) -> np.ndarray:
    """How many candidates learn each object of an image."""
    index = fed.assigned.index[fed.assigned.labels == POSITIVE]
    slots = fed.batch.valid[0]
    return np.bincount(index, minlength=len(slots))[slots]


def _numbers(fed):
    objects = sum(int(each.batch.valid.sum()) for each in fed)
    regions = sum(int(each.batch.crowd.sum()) for each in fed)
    yield f"objects: {objects}" + (f", ignored regions: {regions}" if regions else "")
    if fed[0].assigned is None:
        return
    labels = np.stack([each.assigned.labels for each in fed])
    kind = "points" if fed[0].assigned.by_prediction else "anchors"
    positive, ignored = ((labels == value).sum() for value in (POSITIVE, IGNORE))
    yield f"{kind}: {labels.size}, positive {positive}, ignored {ignored}"
    counts = np.concatenate([counts_of_objects(each) for each in fed])
    if len(counts):
        yield (
            f"{kind} an object: median {np.median(counts):g}, least {counts.min()}; "
            f"objects without: {(counts == 0).sum()}"
        )


def _name(source, order, place):
    try:
        return str(source[order[place]].id)
    except (UnreadableImage, OSError):  # The next one that can be read has taken its place.
        return "unreadable"


def _weights(run, workdir):
    """The variables that decide, and where they come from."""
    if (workdir / "checkpoints").is_dir():
        checkpoints = SavedCheckpoints(workdir / "checkpoints")
        if checkpoints.latest is not None:
            step = checkpoints.find("best")
            variables = checkpoints.restore_variables(step, like=run.variables)
            checkpoints.close()
            return variables, f"checkpoint {step} in {workdir}"
        checkpoints.close()
    return opening.first_variables(run)


def _colour(level):
    return visualize.PALETTE[level % len(visualize.PALETTE)]


def _draw_assigned(picture, assigned, boxes, factor):
    """Anchors or points that are positive, in their level's colour, and a line to their object."""
    level_of = np.repeat(np.arange(len(assigned.levels)), [each.count for each in assigned.levels])
    for place in np.flatnonzero(assigned.labels == POSITIVE):
        box, colour = assigned.boxes[place] * factor, _colour(level_of[place])
        start, end = (tuple(np.rint(corner).astype(int).tolist()) for corner in (box[:2], box[2:]))
        cv2.rectangle(picture, start, end, colour, 1, cv2.LINE_AA)
        own, target = (
            np.rint((each[:2] + each[2:]) / 2).astype(int).tolist()
            for each in (box, boxes[assigned.index[place]])
        )
        cv2.line(picture, own, target, colour, 1, cv2.LINE_AA)
        cv2.circle(picture, own, 5, visualize.BLACK, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, own, 4, colour, cv2.FILLED, cv2.LINE_AA)


def _hatch(picture, content):
    """Lines over what is beside the image."""
    height, width = picture.shape[:2]
    beside = np.ones((height, width), bool)
    beside[: round(float(content[0])), : round(float(content[1]))] = False
    y, x = np.indices(beside.shape)
    picture[beside & ((x + y) % HATCH < 2)] = visualize.INK


def _draw_dashed(picture, box, dash=10):
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        length = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
        for first in range(0, length, 2 * dash):
            start, end = (
                [round(p + (q - p) * min(at, length) / length) for p, q in zip(a, b, strict=True)]
                for at in (first, first + dash)
            )
            cv2.line(picture, start, end, visualize.BLACK, 4, cv2.LINE_AA)
            cv2.line(picture, start, end, visualize.WHITE, 2, cv2.LINE_AA)


def _with_lines(picture, lines):
    """A picture with lines of text below."""
    height, width = picture.shape[:2]
    below = np.full((LINE_HEIGHT * len(lines) + 8, width, 3), visualize.PAPER[0], np.uint8)
    for number, line in enumerate(lines):
        _write(below, line, (4, LINE_HEIGHT * (number + 1) - 2))
    return np.concatenate([picture, below])


def _write(picture, text, place):
    cv2.putText(picture, text, place, visualize.FONT, 0.45, visualize.INK, 1, cv2.LINE_AA)
