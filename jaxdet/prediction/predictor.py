"""A detector with its weights, which turns images into what is found on them."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdet.data import canvases, padding
from jaxdet.data.decoding import PutRight
from jaxdet.evaluation import ImageDetections, runner
from jaxdet.model_file import Contents
from jaxdet.prediction import inputs
from jaxdet.prediction.found import Found
from jaxdet.types import Detector, Example, UserError

# The class of what a detector finds that tells none apart.
OBJECT = ("object",)
# Batches in whose time an image waits for others of its canvas, before it is predicted without.
LONGEST_WAIT = 4


class Predictor:
    """A trained detector: call it with images. `jaxdet.load` makes it.

    It runs on the first device. Images are resized and padded to a canvas, of several
    to the one on which they come out largest, so the program is compiled once for each
    batch size and canvas that is met.

    Attributes:
        class_names: name of each label.
        category_ids: see `model_file.Contents`.
        canvas: (height, width) that images are padded to; of several the first.
        canvases: all of them.
    """

    def __init__(self, contents: Contents, detector: Detector):
        """Takes what `model_file.read` gives.

        Raises:
            UserError: if the detector wants more than images.
        """
        if contents.max_proposals:
            raise UserError(
                f"{contents.detector} wants proposals with each image: it cannot find anything on "
                "images alone"
            )
        named = detector.tells_classes or len(contents.class_names) == 1
        self.class_names = contents.class_names if named else OBJECT
        self.category_ids = contents.category_ids if named else None
        self.canvas, self.canvases = contents.canvas, contents.canvases
        self._resize = contents.resize
        self._resize_rule = contents.resize_rule
        self._variables = jax.device_put(contents.variables)
        self._predict = jax.jit(detector.predict)

    def __call__(self, images: Any, *, score: float = 0.0, batch_size: int = 1) -> list[Found]:
        """Finds objects.

        Args:
            images: a file, a folder (all images in it, by name), an array
                (H, W, 3) of uint8 RGB, or a list of those; of any size.
            score: the lowest score that is given back. The detector has a
                lowest score of its own: what is below, it does not find.
            batch_size: images that are predicted at once; the last ones are
                filled up, and a batch whose images wait for others of their canvas
                for too long. Another batch size is compiled anew, and may differ
                in the last bits.

        Returns:
            What is found on each image, in order.

        Raises:
            UserError: for an image that is not there, or cannot be read.
        """
        asked, decode = list(inputs.gather(images)), partial(_decode, put_right=PutRight())
        pairs = self.stream(map(decode, asked), score=score, batch_size=batch_size)
        return [
            dataclasses.replace(found, image=image)
            for image, (_, found) in zip(asked, pairs, strict=True)
        ]

    def stream(
        self, examples: Iterable[Example], *, score: float = 0.0, batch_size: int = 1
    ) -> Iterator[tuple[Example, Found]]:
        """Finds objects on decoded images, which are taken when they are needed.

        Two batches are held at a time; where there are several canvases, also up to
        `LONGEST_WAIT` more, as what is found is given in the order of the images.

        Args:
            examples: see `inputs.to_example`.
            score: as for a call.
            batch_size: likewise.

        Yields:
            Each example, and what is found on it, whose `image` is the pixels.

        Raises:
            UserError: for settings out of range.
        """
        if not 0 <= score <= 1:
            raise UserError(f"score wants a number from 0 to 1, found {score!r}")
        if batch_size < 1:
            raise UserError(f"batch_size wants at least 1, found {batch_size!r}")
        batches = self._batches(examples, batch_size)
        early, due = {}, 0
        predict = partial(self._predict, self._variables)
        for place, example, found in runner.detect(predict, batches):
            early[place] = example, found
            while due in early:
                example, found = early.pop(due)
                yield example, self._found(example, found, score)
                due += 1

    def _found(self, example: Example, found: ImageDetections, score: float) -> Found:
        keep = found.scores >= score
        boxes, scores, labels = (values[keep] for values in found)
        return Found(
            boxes=boxes,
            scores=scores,
            labels=labels,
            image=example.image,
            size=example.size,
            class_names=self.class_names,
            category_ids=self.category_ids,
        )

    def _batches(self, examples: Iterable[Example], batch_size: int) -> Iterator[runner.Placed]:
        """Batches of one canvas each, as soon as they are full or an image waits for too long."""
        waiting = {canvas: [] for canvas in self.canvases}
        for place, example in enumerate(examples):
            (kind,), _ = canvases.fit(np.array([example.size]), self.canvases, self._resize)
            waiting[self.canvases[kind]].append((place, example))
            for canvas, rows in waiting.items():
                if rows and (
                    len(rows) == batch_size or place - rows[0][0] >= LONGEST_WAIT * batch_size
                ):
                    yield self._batch(canvas, rows, batch_size)
                    waiting[canvas] = []
        for canvas, rows in waiting.items():
            if rows:
                yield self._batch(canvas, rows, batch_size)

    def _batch(
        self, canvas: tuple[int, int], rows: list[tuple[int, Example]], batch_size: int
    ) -> runner.Placed:
        images = padding.blank_images(batch_size, canvas, 0, self._resize_rule)
        places, examples = zip(*rows, strict=True)
        for row, example in enumerate(examples):
            padding.fit_image(images, row, example, self._resize, self._resize_rule)
        return images, examples, places


def _decode(image: Path | np.ndarray, put_right: PutRight) -> Example:
    try:
        return inputs.decode(image, put_right)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
